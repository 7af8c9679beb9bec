"""Training side of ctrloop: pre-training, reward model, preference rounds (DPO and PCPO), model server.

One process runs one job (see job.py); the Go side writes its specification and reads what it leaves. Training
loops are our own, on transformers and PEFT. TRL's DPOTrainer was tried and left out: the product-centric term
needs a third, differently conditioned forward pass, which there means overriding private methods and a collator
whose shape changes between releases, for a loop that fits one screen here.
"""

import os

# Nothing here ever asks a hub: models come from folders. Set before transformers is first imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Progress bars would fill the job's log, whose last lines are what the Go side shows of a failure.
os.environ.setdefault("TQDM_DISABLE", "1")
