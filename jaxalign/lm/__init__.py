"""LLaMA-3: model, weights, tokenizer, and what can be attached to them.

model            a model as one object: open_model, load_model, LM
config           shapes and constants, presets, `config.json`
weights          the table of weights, from which shapes, shardings and files derive
transformer      the Flax model
bits             bfloat16 weights as bits, for programs that a CPU runs
checkpoint       Hugging Face checkpoints, read straight into their shardings
safetensors_io   the file format
source           what a user may give as a model, and where its files are then
hub              models of the Hugging Face hub
gguf             what a GGUF file says of a model; gguf_tokenizer is its tokenizer, gguf_tensors
                 its weights
tokenizer        tokenizer and chat template
mesh             how many devices share one copy of the weights
quantize         weights in 8 bits
lora, peft       low-rank adapters; adapters and soft prompts on disk
generate         replies: decode_queue is the host's side, decode_loop the programs, made of
                 decode_layers and decode_cache; sampling draws the next token
"""
