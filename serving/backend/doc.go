// Package backend speaks to model servers. Prompt is what the rest of serving needs of one replica of a
// prompt-model server; VLLM implements it over vLLM's HTTP calls, which the embedded server
// (ctrloop_trainer.serve) speaks too. Errors are classified here, once.
package backend
