"""Text logs of twenty steps in the words of other trainers, none copied: name, text, (training, validation losses)."""

import json

LLM_C = "".join(
    ("val loss 9.123456\n" if step % 5 == 0 else "")
    + f"step {step:4d}/20 | loss 9.{step:03d}456 (+nanz)| norm 3.1042 (+nanz)| lr 6.00e-04 | 1203.11 ms | "
    "52.1% bf16 MFU | 425000 tok/s\n"
    for step in range(1, 21)
)
TITAN = "".join(
    f"[rank0]:2025-03-02 10:00:{step:02d},120 - root - INFO - \x1b[32mstep: {step:2d}  \x1b[33mloss:  9.{step:02d}11  "
    "\x1b[34mmemory: 12.3GiB(12.30%)  tps: 8,123  mfu: 41.20%\x1b[39m\n"
    for step in range(1, 21)
)
MEGATRON = "".join(
    f" iteration {step:8d}/      20 | consumed samples: {512 * step} | elapsed time per iteration (ms): 1234.5 | "
    f"learning rate: 1.500E-04 | lm loss: 9.{step:02d}1000E+00 | loss scale: 1.0 | grad norm: 1.203 |\n"
    for step in range(1, 21)
)
NOTEBOOK = "Step\tTraining Loss\tValidation Loss\n" + "".join(
    f"{step}00\t3.9{step}\t4.0{step}\n" for step in range(1, 21)
)
MARKDOWN = "| Step | Training Loss | Validation Loss |\n|:--:|---:|---:|\n" + "".join(
    f"| {step}00 | 3.9{step} | No log |\n" for step in range(1, 21)
)
TENSORBOARD_CSV = "Wall time,Step,Value\n" + "".join(f"{1.7e9 + step},{step},3.{step}\n" for step in range(1, 21))
TENSORBOARD_JSON = json.dumps([[1.7e9 + step, step, float(f"3.{step}")] for step in range(1, 21)])
JSON_LINES = "".join(
    f'{{"_step": {step}, "train/loss": "3.{step}", "_runtime": {5 * step}.5}}\n' for step in range(1, 21)
)
SHORT_STEPS = "".join(
    f"Step {step / 2}k/10k | train 3.{step:02d} | val 3.{step:02d} | lr 1e-4 | ok\n" for step in range(1, 21)
)
TENSORS = "".join(f"step {step}: loss = tensor(3.{step:02d}, device='cuda:0') | ok\n" for step in range(1, 21))
LOG_TXT = "".join(
    f"{step} val 9.{step:02d}11\n{step} hella 0.2463\n{step} train 9.{step:02d}123\n" for step in range(20)
)
MAIN_LOG = "".join(
    f"s:{step} tel:9.{step:02d}\ns:{step} trl:9.{step:02d} lr:0.0006 norm:1.20\n" for step in range(1, 21)
)
LLAMA2_C = "".join(f"{step} | loss 9.{step:02d}11 | lr 5.000000e-04 | 112.10ms | mfu 21.33%\n" for step in range(1, 21))
MEGATRON_VAL = MEGATRON + " validation loss at iteration 20 | lm loss value: 3.120000E+00 | lm loss PPL: 2.2646E+01 |\n"
NEOX = "".join(
    f"[2023-03-01 10:00:{step:02d},123] [INFO] [Rank 0] step={step}, skipped=0, lr=[6e-04, 6e-04]\n"
    f"steps: {step} loss: 9.{step:02d}11 iter time (s): 1.021 samples/sec: 1002.7\n"
    f" samples/sec: 1002.7 | iteration {step:8d}/      20 | elapsed time per iteration (ms): 1021.2 | "
    f"learning rate: 6.000E-04 | lm_loss: 9.{step:02d}1100E+00 | loss scale: 65536.0 |\n"
    for step in range(1, 21)
)
OLMO = "".join(
    f"2025-02-11 11:00:{step:02d}\thost:0\tconsole_logger:66\tINFO\t[step={step}/20,epoch=1/1,eta=1 day]\n"
    f"    optim/LR (group 0)=4.0000E-04\n    optim/total grad norm=0.41\n    train/CE loss=9.{step:02d}1\n"
    f"    train/PPL=9,000.10\n"
    for step in range(1, 21)
)
COMPOSER = "".join(
    f"[batch={step}/20]:\n\t Train loss/train/total: 9.{step:02d}11\n"
    f"\t Train metrics/train/LanguageCrossEntropy: 9.{step:02d}\n"
    "\t Train lr-DecoupledAdamW/group0: 6.0000e-04\n"
    + "[Eval batch=1/40] Eval on eval data\n[Eval batch=40/40] Eval on eval data:\n"
    f"\t Eval metrics/eval/LanguageCrossEntropy: 9.{step:02d}\n"
    for step in range(1, 21)
)
LITGPT = "".join(
    f"Epoch 1 | iter {it} step {it // 4} | loss train: 1.{it:02d}, val: {'n/a' if it < 41 else '1.081'} | "
    f"iter time: 250.10 ms{' (step)' if it % 4 == 0 else ''}\n"
    + ("iter 40: val loss 1.0812, val time: 2134.12 ms\n" if it == 40 else "")
    for it in range(4, 81)
)
BARS = "Map: 100%|##########| 2318/2318 [00:01<00:00, 1812.11 examples/s]\n" + "".join(
    f"\rEpoch {epoch}: {5 * step:3d}%|##   | {step}/20 [00:{step:02d}<00:09,  1.00it/s, train_loss=3.{step:02d}"
    f"{', val_loss=3.410' if epoch else ''}]"
    for epoch in range(2)
    for step in range(1, 21)
)
MLX = (
    "Fetching 9 files: 100%|##########| 9/9 [00:00<00:00, 61680.94it/s]\nIter 1: Val loss 2.865, Val took 23.5s\n"
    + "".join(f"Iter {step}: Train loss 2.{step:02d}, Learning Rate 1.000e-05, It/sec 0.51\n" for step in range(1, 21))
)
PERPLEXITY = "iter,train_ppl,val_ppl\n" + "".join(f"{step},2{step}.5,3{step}.5\n" for step in range(10, 30))
COMMAS = "Step;train_loss;val_loss\n" + "".join(f"{step};3,4{step};3,5{step}\n" for step in range(10, 30))
TRAINER_END = (
    "".join(
        f" {step}/20 [00:{step:02d}<00:09,  1.00it/s]\r{{'loss': 3.{step:02d}, 'epoch': {step / 20}}}\n"
        for step in range(1, 21)
    )
    + "{'train_runtime': 20.0, 'train_steps_per_second': 1.0, 'train_loss': 9.1, 'epoch': 1.0}\n"
    + "***** train metrics *****\n  train_loss    =   9.1\nwandb: train/loss 9.1\n"
)
RANKS = "".join(
    f"[rank{rank}]: step {step} loss 3.{step:02d}{rank} val_loss 3.3{rank} | ok\n"
    for step in range(1, 21)
    for rank in range(4)
)
LLAMA_FACTORY = "".join(
    f'{{"current_steps": {step}, "total_steps": 20, "loss": 1.{step:02d}, "lr": 1e-4, "percentage": {5 * step}, '
    f'"elapsed_time": "0:01:{step:02d}", "remaining_time": "0:00:10"}}\n'
    + (f'{{"current_steps": {step}, "total_steps": 20, "eval_loss": 1.{step:02d}2}}\n' if step % 5 == 0 else "")
    for step in range(1, 21)
)
SWIFT = "".join(
    f"{{'loss': 1.{step:02d}, 'learning_rate': 1e-4, 'global_step/max_steps': '{step}/20', 'elapsed_time': '1m 2s'}}\n"
    for step in range(1, 21)
)
JAX = "".join(f"{{'loss': Array(3.{step:02d}, dtype=float32), 'step': {step}}}\n" for step in range(1, 21))
FASTAI = "epoch     train_loss  valid_loss  accuracy  time    \n" + "".join(
    f"{epoch:<10d}3.{epoch:02d}1234    3.{epoch:02d}5678    0.31{epoch:02d}    01:{epoch:02d}   \n"
    for epoch in range(20)
)
BATCHES = "".join(
    f"| epoch {epoch:3d} | {step:5d}/ 1000 batches | lr 20.00 | ms/batch 12.31 | loss 15.{epoch}{step // 100}\n"
    + (f"| end of epoch {epoch:3d} | time: 12.3s | valid loss  5.{epoch}9 | valid ppl  162.1\n" if step == 1000 else "")
    for epoch in range(1, 3)
    for step in range(100, 1001, 100)
)
BITS = "".join(
    f"step {step}/20 | train_bpb 1.{step:02d} | val bpb: 1.{step:02d}5 | lr 1e-3 | ok\n" for step in range(1, 21)
)

BRACKETS = "".join(
    f"[train] step {step} loss 3.{step:02d} lr 1e-3 | ok\n[eval] step {step} loss 3.{step:02d}5 | ok\n"
    for step in range(1, 21)
)
MAXTEXT = "".join(
    f"completed step: {step}, seconds: 1.213, total_weights: 65536, loss: 9.{step:02d}1\n"
    f"eval metrics after step: {step}, loss=9.{step:02d}5, total_weights=65536\n"
    for step in range(20)
)
FAIRSEQ = "".join(
    f"2023-01-01 10:{step:02d}:00 | INFO | train_inner | epoch 001: {step} / 20 loss=9.{step:02d}1, ppl=9{step}.1, "
    f"num_updates={step}, lr=0.0006, gnorm=1.21, wall={step}\n"
    f"2023-01-01 10:{step:02d}:30 | INFO | valid | epoch 001 | valid on 'valid' subset | loss 9.{step:02d}5 | "
    f"ppl 9{step}.5 | num_updates {step} | best_loss 9.0\n"
    for step in range(1, 21)
)
NESTED = "".join(
    f'{{"step": {step}, "train": {{"loss": 3.{step:02d}}}, "eval": {{"loss": 3.{step:02d}5}}}}\n'
    for step in range(1, 21)
)
SPACES = "step train_loss val_loss\n" + "".join(f"{step} 3.{step:02d} 3.{step:02d}5\n" for step in range(1, 21))
FROM_ZERO = "".join(
    f"epoch {epoch} step {step} | loss 3.{epoch}{step} | val loss 3.{epoch}{step}5 | ok\n"
    for epoch in range(2)
    for step in range(10)
)

CONSOLES = [
    ("brackets.log", BRACKETS, (20, 20)),
    ("maxtext.log", MAXTEXT, (20, 20)),
    ("fairseq.log", FAIRSEQ, (20, 20)),
    ("nested.jsonl", NESTED, (20, 20)),
    ("spaces.txt", SPACES, (20, 20)),
    ("from_zero.log", FROM_ZERO, (20, 20)),
    ("llm.c.log", LLM_C, (20, 4)),
    ("titan.log", TITAN, (20, 0)),
    ("megatron.log", MEGATRON, (20, 0)),
    ("notebook.txt", NOTEBOOK, (20, 20)),
    ("table.md", MARKDOWN, (20, 0)),
    ("run-tag-train_loss.csv", TENSORBOARD_CSV, (20, 0)),
    ("run-tag-eval_loss.csv", TENSORBOARD_CSV, (0, 20)),
    ("run-tag-train_loss.json", TENSORBOARD_JSON, (20, 0)),
    ("history.jsonl", JSON_LINES, (20, 0)),
    ("short.log", SHORT_STEPS, (20, 20)),
    ("tensors.log", TENSORS, (20, 0)),
    ("ranks.log", RANKS, (20, 20)),
    ("log.txt", LOG_TXT, (20, 20)),
    ("main.log", MAIN_LOG, (20, 20)),
    ("llama2.c.log", LLAMA2_C, (20, 0)),
    ("megatron_val.log", MEGATRON_VAL, (20, 1)),
    ("neox.log", NEOX, (20, 0)),
    ("olmo.log", OLMO, (20, 0)),
    ("composer.log", COMPOSER, (20, 20)),
    ("litgpt.log", LITGPT, (20, 1)),
    ("bars.log", BARS, (40, 1)),
    ("mlx.log", MLX, (20, 1)),
    ("perplexity.csv", PERPLEXITY, (20, 20)),
    ("commas.csv", COMMAS, (20, 20)),
    ("trainer_end.log", TRAINER_END, (20, 0)),
    ("trainer_log.jsonl", LLAMA_FACTORY, (20, 4)),
    ("swift.log", SWIFT, (20, 0)),
    ("logging.jsonl", SWIFT.replace("'", '"'), (20, 0)),
    ("easylm.log", JAX, (20, 0)),
    ("word_language_model.log", BATCHES, (20, 2)),
    ("bits.log", BITS, (20, 20)),
    ("semicolons.csv", NOTEBOOK.replace("\t", ";"), (20, 20)),
    ("twice.csv", (NOTEBOOK + NOTEBOOK.partition("\n")[0] + "\n2100\t3.1\t3.2\n").replace("\t", ","), (21, 21)),
]
