"""training/qa.py as a program that stops dead once the checkpoint of the step STOP_AFTER is whole."""

import os

import loop
import qa
from script import main

save = loop.TrainingLoop._save_checkpoint


def stop(self):
    save(self)
    if self.step == int(os.environ["STOP_AFTER"]):
        self.accelerator.wait_for_everyone()
        os._exit(0)


if __name__ == "__main__":
    loop.TrainingLoop._save_checkpoint = stop
    main(qa.QAArguments, qa.prepare, qa.__doc__)
