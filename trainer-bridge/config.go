package trainerbridge

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"ctrloop/trainer-bridge/runner"
	"ctrloop/trainer-bridge/runner/ray"
	"ctrloop/trainer-bridge/runner/slurm"
)

// Config of the trainer-bridge.
type Config struct {
	// Interval between two looks at the control log, as a safety net: a change wakes it at once.
	Interval time.Duration `yaml:"interval"`
	// Threads of a training process. One is the fastest for the embedded models on a machine that also serves:
	// threads of small matrices spend their time waiting for each other.
	Threads int `yaml:"threads"`
	// Seed of training; each job mixes in its data set.
	Seed uint64 `yaml:"seed"`
	// Timeout is the longest time that a job may go without progress (a line in its curve or its log) before it is
	// stopped and counts as failed. A slow machine is no failure: how long a job takes has no bound.
	Timeout time.Duration `yaml:"timeout"`
	// StopGrace is the time a job has to write its checkpoint after SIGTERM.
	StopGrace time.Duration `yaml:"stop_grace"`
	// Retries of a job that failed in a way that may pass (out of memory, timeout, interrupted, a file missing, a crash);
	// wrong input, diverged training and too little evidence are not tried again.
	Retries int `yaml:"retries"`
	// Backoff before the first of them, doubled with each.
	Backoff time.Duration `yaml:"backoff"`
	// Device is where jobs compute: cpu, cuda or auto (a GPU where there is one).
	Device string `yaml:"device,omitempty"`
	// Precision of the models' weights: fp32, bf16 or fp16. Large bases want bf16.
	Precision string `yaml:"precision,omitempty"`
	// Quantize is 4bit where the base's weights do not fit otherwise (needs an NVIDIA GPU), or empty.
	Quantize string `yaml:"quantize,omitempty"`
	// Checkpointing recomputes activations: less memory, a third more time. Large bases want it.
	Checkpointing bool `yaml:"checkpointing,omitempty"`
	// Runner is where jobs run: local (children of this process), ray or slurm. docs/jobs.md has an example of each.
	Runner RunnerName `yaml:"runner"`
	// Resources of a job: limits on this machine, requests and limits on a cluster. 0 is none, or the cluster's default.
	Resources runner.Resources `yaml:"resources,omitempty"`
	// Cluster is what the runners ray and slurm have in common.
	Cluster ClusterConfig `yaml:"cluster"`
	// Ray is for the runner ray.
	Ray ray.Config `yaml:"ray,omitempty"`
	// Slurm is for the runner slurm.
	Slurm slurm.Config `yaml:"slurm,omitempty"`
	// Reward are hyper-parameters of reward jobs, passed to the trainer as they are; docs/jobs.md lists them. form: mllm
	// makes the two-image reward model of the base instead of the small one.
	Reward map[string]any `yaml:"reward,omitempty"`
	// Rounds are hyper-parameters of the preference rounds.
	Rounds map[string]any `yaml:"rounds,omitempty"`
}

// RunnerName names what runs jobs. The list is closed.
type RunnerName string

// Runners.
const (
	RunLocal RunnerName = "local"
	RunRay   RunnerName = "ray"
	RunSlurm RunnerName = "slurm"
)

// ClusterConfig is what runners on clusters have in common.
type ClusterConfig struct {
	// Python is the interpreter on the cluster's machines, in an environment of trainer-bridge/trainer/requirements.txt.
	Python string `yaml:"python"`
	// Paths says how the cluster's machines see the shared folders of this one; without any, under the same paths. Jobs lie in
	// `jobs` and artifacts in `artifacts` of the data folder (--dir): both are read there, and `jobs` is written.
	Paths []PathMap `yaml:"paths,omitempty"`
	// Interval between two looks at a run.
	Interval time.Duration `yaml:"interval"`
	// StartTimeout is how long a run may wait for resources before it is called off.
	StartTimeout time.Duration `yaml:"start_timeout"`
	// LostAfter is how long the cluster may not know a run, or a file that it left may not be seen here, before it counts as lost.
	LostAfter time.Duration `yaml:"lost_after"`
}

// Default is the configuration of an embedded run.
func Default() Config {
	return Config{
		Interval: 5 * time.Second, Threads: 1, Timeout: 2 * time.Hour, StopGrace: 30 * time.Second, Device: "cpu", Precision: "fp32",
		Retries: 2, Backoff: time.Minute, Runner: RunLocal,
		Cluster: ClusterConfig{Python: "python3", Interval: 5 * time.Second, StartTimeout: 6 * time.Hour, LostAfter: 90 * time.Second},
	}
}

// Placement of the jobs' models.
func (c Config) Placement() Placement {
	return Placement{Device: c.Device, Precision: c.Precision, Quantize: c.Quantize, Checkpointing: c.Checkpointing}
}

// Validate returns every problem of the section, each with its key.
func (c Config) Validate() error {
	var errs []error
	if c.Interval <= 0 {
		errs = append(errs, fmt.Errorf("interval: %v: want more than 0", c.Interval))
	}
	if c.Threads < 1 {
		errs = append(errs, fmt.Errorf("threads: %d: want at least 1", c.Threads))
	}
	if c.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("timeout: %v: want more than 0", c.Timeout))
	}
	if c.StopGrace <= 0 {
		errs = append(errs, fmt.Errorf("stop_grace: %v: want more than 0", c.StopGrace))
	}
	if c.Retries < 0 || c.Retries > 100 {
		errs = append(errs, fmt.Errorf("retries: %d: want 0 to 100", c.Retries))
	}
	if c.Backoff <= 0 {
		errs = append(errs, fmt.Errorf("backoff: %v: want more than 0", c.Backoff))
	}
	for _, one := range []struct {
		key, value string
		known      []string
	}{
		{"device", c.Device, []string{"", "cpu", "cuda", "auto"}},
		{"precision", c.Precision, []string{"", "fp32", "bf16", "fp16"}},
		{"quantize", c.Quantize, []string{"", "4bit"}},
	} {
		if !slices.Contains(one.known, one.value) {
			errs = append(errs, fmt.Errorf("%s: %q: want one of %s", one.key, one.value, strings.Join(one.known[1:], ", ")))
		}
	}
	return errors.Join(append(errs, c.runnerProblems()...)...)
}

// runnerProblems are those of where jobs run. Sections of runners that are not chosen may say anything.
func (c Config) runnerProblems() (errs []error) {
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if c.Resources.CPUs < 0 {
		bad("resources.cpus", "%v: want 0 or more", c.Resources.CPUs)
	}
	if m := c.Resources.MemoryBytes; m < 0 || m > 0 && m < leastMemory {
		bad("resources.memory_bytes", "%d: want 0, or at least %d: the trainer's libraries alone need that", m, int64(leastMemory))
	}
	if c.Resources.GPUs < 0 {
		bad("resources.gpus", "%d: want 0 or more", c.Resources.GPUs)
	}
	var section []error
	switch c.Runner {
	case RunLocal:
		if c.Resources.GPUs > 0 {
			bad("resources.gpus", "%d: a job on this machine has all of its GPUs (see device); want 0", c.Resources.GPUs)
		}
		return errs
	case RunRay:
		section = c.Ray.Problems()
	case RunSlurm:
		section = c.Slurm.Problems()
	default:
		bad("runner", "%q: want one of %s, %s, %s", c.Runner, RunLocal, RunRay, RunSlurm)
		return errs
	}
	for _, err := range section {
		errs = append(errs, fmt.Errorf("%s.%w", c.Runner, err))
	}
	return append(errs, c.Cluster.problems()...)
}

// leastMemory that the embedded models train with; below it the trainer does not get as far as an error of its own.
const leastMemory = 512 << 20

func (c ClusterConfig) problems() (errs []error) {
	if c.Python == "" {
		errs = append(errs, errors.New("cluster.python: want the interpreter of the cluster's machines"))
	}
	for i, m := range c.Paths {
		if !filepath.IsAbs(m.Here) || !filepath.IsAbs(m.There) {
			errs = append(errs, fmt.Errorf("cluster.paths[%d]: %q to %q: want absolute paths", i, m.Here, m.There))
		}
	}
	for _, d := range []struct {
		key   string
		value time.Duration
	}{{"interval", c.Interval}, {"start_timeout", c.StartTimeout}, {"lost_after", c.LostAfter}} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("cluster.%s: %v: want more than 0", d.key, d.value))
		}
	}
	return errs
}
