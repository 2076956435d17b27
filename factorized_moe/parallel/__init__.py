"""Expert tensors over several devices: any label of any described network, by `torch.distributed`."""
