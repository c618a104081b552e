"""The programs as commands that `pip install` puts on the path: emit-demo, emit-pretrain, emit-dataset, ..."""

from importlib import import_module

from emit.errors import run


def command(module, again="--resume"):
    """Return a function that runs a program's main, with its way to go on after a signal (see `emit.errors.run`)."""
    return lambda: run(import_module(module).main, again)


demo = command("emit.demo", "")
pretrain = command("train_pretrain")
dataset = command("emit.dataset", "")
finetune = command("train_finetune")
generate = command("emit.generate")
sample = command("emit.sample", "")
seg = command("train_seg")
predict = command("emit.predict")
checkpoints = command("emit.checkpoints.__main__", "")
