"""The programs as commands that `pip install` puts on the path: emit-demo, emit-pretrain, emit-dataset, ..."""

from emit.errors import run


def demo():
    """python -m emit.demo"""
    from emit.demo import main

    run(main, again="")


def pretrain():
    """python train_pretrain.py"""
    from train_pretrain import main

    run(main)


def dataset():
    """python -m emit.dataset"""
    from emit.dataset import main

    run(main, again=None)


def finetune():
    """python train_finetune.py"""
    from train_finetune import main

    run(main)


def generate():
    """python -m emit.generate"""
    from emit.generate import main

    run(main)


def seg():
    """python train_seg.py"""
    from train_seg import main

    run(main)


def checkpoints():
    """python -m emit.checkpoints"""
    from emit.checkpoints.__main__ import main

    run(main, again=None)
