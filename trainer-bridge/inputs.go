package trainerbridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/rs/zerolog"

	"ctrloop/internal/artifact"
	"ctrloop/schemas/control"
	"ctrloop/trainer-bridge/runner"
)

// Placement is where models lie and in which numbers they compute, as the trainer's specification has it. The zero value
// is the embedded model's.
type Placement struct {
	Device        string `json:"device,omitempty"`
	Precision     string `json:"precision,omitempty"`
	Quantize      string `json:"quantize,omitempty"`
	Checkpointing bool   `json:"checkpointing,omitempty"`
}

// TrainerSpec is the trainer's spec.json, see docs/jobs.md: in paths of this machine. What is empty is not given.
type TrainerSpec struct {
	Kind    Kind   `json:"kind"`
	ID      string `json:"id"`
	Seed    uint64 `json:"seed"`
	Threads int    `json:"threads"`
	Placement
	Base          string         `json:"base,omitempty"`
	BaseDigest    string         `json:"base_digest,omitempty"`
	Dataset       string         `json:"dataset,omitempty"`
	DatasetDigest string         `json:"dataset_digest,omitempty"`
	RewardModel   string         `json:"reward_model,omitempty"`
	RefereeModel  string         `json:"referee_model,omitempty"`
	Previous      string         `json:"previous,omitempty"`
	Truth         string         `json:"truth,omitempty"` // file: creative -> true click-through rate
	Renderer      []string       `json:"renderer"`
	Grammar       string         `json:"grammar"`
	Catalogue     string         `json:"catalogue"`
	Hyper         map[string]any `json:"hyper"`
}

// Inputs are what every job of this installation works with, in paths of this machine.
type Inputs struct {
	Python    string   // interpreter of the trainer's environment
	Trainer   string   // folder for PYTHONPATH, see Extract
	Dir       string   // a folder per job lies here; it outlives the job, for its log and its checkpoint
	Base      string   // folder of the base prompt model
	Grammar   string   // file: grammar.json
	Catalogue string   // file: catalogue.jsonl
	Renderer  []string // command that draws creatives, speaking on stdin and stdout
	Threads   int
	Placement Placement // of the models
	Resources runner.Resources
	Store     *artifact.Store
}

// JobDir is the folder of a job: spec.json, job.log and out/.
func (in Inputs) JobDir(id string) string { return filepath.Join(in.Dir, id) }

// spec turns what the control log asks for into what the trainer reads. An error means that the job cannot run here.
func (in Inputs) spec(job control.JobStatus) (TrainerSpec, error) {
	var s Spec
	if err := json.Unmarshal(job.Spec, &s); err != nil {
		return TrainerSpec{}, fmt.Errorf("job %s: spec: %w", job.ID, err)
	}
	t := TrainerSpec{
		Kind: s.Kind, ID: job.ID, Seed: s.Seed, Threads: in.Threads, Placement: in.Placement, Base: in.Base, BaseDigest: s.Base,
		Dataset: in.Store.Path(s.Dataset), DatasetDigest: s.Dataset,
		Renderer: in.Renderer, Grammar: in.Grammar, Catalogue: in.Catalogue, Hyper: s.Hyper,
	}
	if t.Hyper == nil {
		t.Hyper = map[string]any{}
	}
	for _, m := range []struct {
		digest string
		path   *string
	}{{s.Reward, &t.RewardModel}, {s.Referee, &t.RefereeModel}, {s.Previous, &t.Previous}} {
		if m.digest != "" {
			*m.path = filepath.Join(in.Store.Path(m.digest), "model")
		}
	}
	for _, d := range []string{s.Dataset, s.Reward, s.Referee, s.Previous} {
		if d != "" && !in.Store.Has(d) {
			return t, fmt.Errorf("job %s needs artifact %s, which is not in the store: was the data folder moved or cleaned?", job.ID, d)
		}
	}
	return t, nil
}

// trainerEnv is the environment of a training process. trainer is the folder for PYTHONPATH, as the process sees it.
func trainerEnv(trainer string) []string {
	return []string{
		"PYTHONPATH=" + trainer,
		"PYTHONUNBUFFERED=1",
		"PYTHONDONTWRITEBYTECODE=1",
		"HF_HUB_OFFLINE=1",
		"TOKENIZERS_PARALLELISM=false",
	}
}

// trainerFile in a job's folder names the version of the trainer that began it.
const trainerFile = "trainer"

// begin makes the folder out, empty if another version of the trainer has begun it: the trainer refuses to go on there, since half
// a model by each version would be no version's.
func (in Inputs) begin(dir, out string, log zerolog.Logger) error {
	own, marker := filepath.Base(in.Trainer), filepath.Join(dir, trainerFile)
	if before, err := os.ReadFile(marker); err == nil && string(before) != own {
		log.Info().Str("job", filepath.Base(dir)).Msg("another version of the trainer has begun this job: it starts over")
		if err := os.RemoveAll(out); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(out, 0o755); err != nil {
		return err
	}
	return os.WriteFile(marker, []byte(own), 0o644)
}

// logFile in a job's folder has what the trainer printed, in all its runs.
const logFile = "job.log"

// Logs writes what a job has printed so far: nothing, before it has begun.
func (in Inputs) Logs(_ context.Context, job control.JobStatus, w io.Writer) error {
	f, err := os.Open(filepath.Join(in.JobDir(job.ID), logFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("log of job %s: %w", job.ID, err)
	}
	defer f.Close()
	_, err = io.Copy(w, f)
	return err
}

// run is the number of the run that a job is at, 1 for the first. A run goes over restarts of the bridge and ends with a success or
// a failure on the control log.
func run(job control.JobStatus) int { return max(1, job.Update.Run) }

// cancelFile in a job's folder says that a run was called off.
func cancelFile(run int) string { return fmt.Sprintf("cancel-%d", run) }

// Cancel calls off the run that a job is at. The process that runs it looks once a second, so that any process may call.
func (in Inputs) Cancel(_ context.Context, job control.JobStatus) error {
	dir := in.JobDir(job.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("cancel job %s: %w", job.ID, err)
	}
	if err := artifact.WriteFile(filepath.Join(dir, cancelFile(run(job))), nil, 0o644); err != nil {
		return fmt.Errorf("cancel job %s: %w", job.ID, err)
	}
	return nil
}

var errCancelled = errors.New("called off")
