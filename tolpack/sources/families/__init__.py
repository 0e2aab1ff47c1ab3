"""Tables of known families of models, recognised by configuration, tensor names and shapes."""
