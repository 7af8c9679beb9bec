package two

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"ctrloop/internal/imaging"
	"ctrloop/serving/backend/vllmfake"
	"ctrloop/serving/servingtest"
	trainerbridge "ctrloop/trainer-bridge"
)

// The trainer's program is faked, and nothing else of training: this test binary under the name of Python takes a
// specification and leaves what a job leaves, after a while. Its adapters are whole files whose content follows from the
// data set, so that the model servers (fakes too) answer otherwise with each, and the activation probe can tell.

const (
	trainerProgram = "python"
	journalEnv     = "CTRLOOP_TWO_JOURNAL"
	workEnv        = "CTRLOOP_TWO_WORK"
)

// Entry is a line of the journal of training processes.
type entry struct {
	Job   string `json:"job"`
	Event string `json:"event"` // started, ended
	PID   int    `json:"pid"`
	PPID  int    `json:"ppid"`
}

// fakeHome is a folder of downloads whose Python environment is this binary.
func fakeHome(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	sum := sha256.Sum256(trainerbridge.Lock())
	env := filepath.Join(home, "python", hex.EncodeToString(sum[:])[:12])
	if err := os.MkdirAll(filepath.Join(env, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, filepath.Join(env, "bin", trainerProgram))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(env, ".ctrloop-complete"), nil, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return home
}

// model is a fake model server's configuration; the trainer knows by it what the servers will answer.
func model() vllmfake.Config {
	return vllmfake.Config{Base: "prompt-base", Answer: describe}
}

// describe answers with a description of the scene grammar.
func describe(weights, prompt string, seed int64) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s|%s|%d", weights, prompt, seed)
	n := h.Sum64()
	pick := func(list []string) string {
		word := list[n%uint64(len(list))]
		n /= uint64(len(list))
		return word
	}
	v := imaging.Grammar()
	return fmt.Sprintf("%s, %s tones, %s, %s", pick(v.Scenes), pick(v.Palettes), pick(v.Lights), pick(v.Props))
}

// train is the stand-in for `python -m ctrloop_trainer.job SPEC.json --out DIR`.
func train(args []string) {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, os.Interrupt)
	if len(args) < 3 || args[1] != "ctrloop_trainer.job" {
		fmt.Fprintln(os.Stderr, "the stand-in for the trainer runs jobs only:", args)
		os.Exit(2)
	}
	flags := flag.NewFlagSet("job", flag.ExitOnError)
	out := flags.String("out", "", "folder of the result")
	_ = flags.Parse(args[3:])
	t := outside{}
	var spec trainerbridge.TrainerSpec
	t.must(read(args[2], &spec))
	t.must(note(entry{spec.ID, "started", os.Getpid(), os.Getppid()}))
	work, err := time.ParseDuration(os.Getenv(workEnv))
	t.must(err)
	curve, err := os.OpenFile(filepath.Join(*out, "metrics.jsonl"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	t.must(err)
	for step := range 10 {
		fmt.Fprintf(curve, `{"stage":"stand-in","step":%d}`+"\n", step)
		select {
		case <-stop:
			os.Exit(5)
		case <-time.After(work / 10):
		}
	}
	servingtest.WriteJSON(t, filepath.Join(*out, "lineage.json"), map[string]any{"base_digest": spec.BaseDigest})
	if spec.Kind == trainerbridge.KindRounds {
		adapter(t, spec, *out)
	} else {
		servingtest.WriteJSON(t, filepath.Join(*out, "model", "reward.json"), map[string]any{"form": "stand-in", "dataset": spec.DatasetDigest})
	}
	servingtest.WriteJSON(t, filepath.Join(*out, "metrics.json"), map[string]any{
		"gates": []map[string]any{{"name": "stand-in", "value": 1, "threshold": 0, "passed": true}},
	})
	t.must(note(entry{spec.ID, "ended", os.Getpid(), os.Getppid()}))
}

// adapter leaves what a rounds job leaves.
func adapter(t outside, spec trainerbridge.TrainerSpec, out string) {
	seen, err := vllmfake.Start(model())
	t.must(err)
	defer seen.Kill()
	sum := sha256.Sum256([]byte(spec.DatasetDigest))
	dir := servingtest.Adapter(t, seen, servingtest.LoRA(float32(binary.LittleEndian.Uint32(sum[:])>>8)), spec.BaseDigest)
	for _, name := range []string{"adapter_config.json", "adapter_model.safetensors", "probe.json"} {
		raw, err := os.ReadFile(filepath.Join(dir, name))
		t.must(err)
		to := filepath.Join(out, "adapter", name)
		if name == "probe.json" {
			to = filepath.Join(out, name)
		}
		t.must(os.MkdirAll(filepath.Dir(to), 0o755))
		t.must(os.WriteFile(to, raw, 0o644))
	}
	t.must(os.RemoveAll(dir))
}

// note appends to the journal; one write of a short line is whole.
func note(e entry) error {
	raw, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(os.Getenv(journalEnv), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(raw, '\n'))
	return errFirst(err, f.Close())
}

// journal reads what the training processes have noted.
func journal(t *testing.T, path string) (out []entry) {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for dec := json.NewDecoder(strings.NewReader(string(raw))); ; {
		var e entry
		if err := dec.Decode(&e); err == io.EOF {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
}

func read(path string, into any) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(raw, into)
}

func errFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// outside lets a process that is no test use what writes files for tests.
type outside struct{ testing.TB }

func (outside) Helper() {}

func (o outside) must(err error) {
	if err != nil {
		o.Fatal(err)
	}
}

func (outside) Fatal(args ...any) {
	fmt.Fprintln(os.Stderr, args...)
	os.Exit(1)
}

func (o outside) TempDir() string {
	dir, err := os.MkdirTemp("", "ctrloop-two-adapter-*")
	o.must(err)
	return dir
}
