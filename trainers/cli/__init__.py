"""The command line, as a package of its own: importing `modeling_electra_exit` loads torch, which `--help` must not
wait for. Nothing outside imports it."""
