package serving

import (
	"errors"
	"fmt"
	"time"

	"ctrloop/serving/backend"
	"ctrloop/serving/creatives"
	"ctrloop/serving/decide"
	"ctrloop/serving/gateway"
	"ctrloop/serving/swap"
)

// Config of serving.
type Config struct {
	// Replicas are the addresses of the prompt-model servers, http://host:port each. All must run the same base.
	Replicas []string `yaml:"replicas"`
	// ControlTimeout bounds loading and unloading an adapter on a server.
	ControlTimeout time.Duration `yaml:"control_timeout"`
	// ReadTimeout bounds asking a server for its health or its models.
	ReadTimeout time.Duration `yaml:"read_timeout"`
	// ChatTimeout bounds one completion, streaming included.
	ChatTimeout time.Duration `yaml:"chat_timeout"`
	// Swap is about loading, probing, flipping and draining versions.
	Swap swap.Config `yaml:"swap"`
	// Gateway is about chat completions.
	Gateway gateway.Config `yaml:"gateway"`
	// Creatives is about making ad images.
	Creatives creatives.Config `yaml:"creatives"`
	// Decide is about choosing one for a slot.
	Decide decide.Config `yaml:"decide"`
}

// Default is the configuration of an embedded run, without what depends on the machine: replicas, swap.base_dir,
// creatives.dir.
func Default() Config {
	v := backend.DefaultVLLMConfig("")
	return Config{
		ControlTimeout: v.ControlTimeout, ReadTimeout: v.ReadTimeout, ChatTimeout: v.ChatTimeout,
		Swap: swap.Default(), Gateway: gateway.Default(), Creatives: creatives.Default(), Decide: decide.Default(),
	}
}

// Validate returns the problems of this level, each with its path; the sections have their own.
func (c Config) Validate() error {
	var errs []error
	if len(c.Replicas) == 0 {
		errs = append(errs, errors.New("replicas: want the address of at least one model server"))
	}
	for path, d := range map[string]time.Duration{"control_timeout": c.ControlTimeout, "read_timeout": c.ReadTimeout,
		"chat_timeout": c.ChatTimeout} {
		if d <= 0 {
			errs = append(errs, fmt.Errorf("%s: %v: want more than 0", path, d))
		}
	}
	return errors.Join(errs...)
}
