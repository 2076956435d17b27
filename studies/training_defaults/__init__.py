"""Which initialisation and which gate should be the defaults: small models, trained at equal parameters, in pairs."""
