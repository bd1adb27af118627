from ndvit.cli.printing import out
from ndvit.config import list_models, named_config


def models() -> None:
    """List the models: name, input, parameters, multiply-adds of one example."""
    from ndvit.network import count_cost

    out(f"{'name':26} {'input':>14} {'parameters':>12} {'GMACs':>9}")
    for name in list_models():
        config = named_config(name)
        parameters, macs = count_cost(config)
        size = "x".join(map(str, (config.in_channels, *config.input_size)))
        out(f"{name:26} {size:>14} {parameters:>12,} {macs / 1e9:>9.3f}")
    out(
        "\nvit_SIZE, signal_SIZE and compact_SIZE take their input and patch from the data. Counts are for 1000 "
        "classes, without the random convolutions beside signal_SIZE; one multiply-add is one MAC."
    )
