// Package serving is what answers: the gateway to the prompt models, the hot swap of their versions, the making of
// creatives and the decision which of them an ad slot gets.
//
//	backend      clients of model servers; vllmfake imitates vLLM's protocol for tests
//	safetensors  headers of weight files
//	route        the table of versions and replicas that requests are admitted by
//	swap         brings versions into the table and out of it, as the control log says
//	gateway      POST /v1/chat/completions
//	creatives    POST /v1/creatives and what follows
//	decide       POST /v1/decide
//	experiment   assignment and the rollout controller
//	rollout      takes a new version to its experiment
//	console      the web page
//
// Service composes the first seven over one control log.
package serving
