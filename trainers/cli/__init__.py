"""The command line. It is a separate package because importing `modeling_electra_exit` loads torch, which `--help`
must not wait for. No other package imports it."""
