"""Experts on a backbone that is trained with them: do they specialise as on frozen features?"""
