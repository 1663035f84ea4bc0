"""LLaMA-3: model, weights, tokenizer, and what can be attached to them.

model            a model as one object: open_model, load_model, LM
config           shapes and constants, presets, `config.json`
weights          the table of weights, from which shapes, shardings and files derive
transformer      the Flax model
checkpoint       Hugging Face checkpoints, read straight into their shardings
safetensors_io   the file format
gguf             GGUF files, converted to a model folder; gguf_tokenizer is their tokenizer
tokenizer        tokenizer and chat template
mesh             how many devices share one copy of the weights
quantize         weights in 8 bits
lora, peft       low-rank adapters; adapters and soft prompts on disk
generate         replies in batches: decode_loop is the program, sampling the next token
"""
