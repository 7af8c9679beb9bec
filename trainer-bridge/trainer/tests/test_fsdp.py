"""The configuration that the documents name for several GPUs."""

from pathlib import Path

from accelerate.commands.config.config_args import load_config_from_file

FILE = Path(__file__).parents[1] / "fsdp.yaml"


def test_accelerate_reads_it_and_shards_the_weights():
    """An unknown key is an error there."""
    config = load_config_from_file(str(FILE))
    assert config.distributed_type.value == "FSDP"
    assert config.fsdp_config["fsdp_version"] == 2
    assert config.mixed_precision == "no"  # the specification's precision decides
    assert config.num_processes > 1
