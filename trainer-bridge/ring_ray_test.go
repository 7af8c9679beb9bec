package trainerbridge

import (
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"ctrloop/trainer-bridge/runner"
	"ctrloop/trainer-bridge/runner/ray"
)

// rayEnv names the Python environment with Ray in it: `make ray-ring`.
const rayEnv = "CTRLOOP_TEST_RAY"

func TestRayRing(t *testing.T) {
	venv := os.Getenv(rayEnv)
	if venv == "" {
		t.Skip("needs a real Ray: make ray-ring")
	}
	ports := []int{freePort(t), freePort(t), freePort(t)}
	server := "http://127.0.0.1:" + strconv.Itoa(ports[1])
	stop := startRay(t, venv, ports, server)
	t.Cleanup(func() { stop() })
	address, gate := behind(t, server)
	cluster := ray.New(ray.Config{Address: address})
	ring{
		cluster: cluster, gate: gate, wantClass: FailUnstarted,
		want: func(r *runner.Resources) { r.GPUs = 1 },
		forget: func() {
			stop()
			stop = startRay(t, venv, ports, server)
		},
	}.test(t)
}

// startRay starts a head node that takes jobs. Parts of Ray give up after 30 s, which a busy machine needs to start the others: it is
// tried again.
func startRay(t *testing.T, venv string, ports []int, server string) (stop func()) {
	t.Helper()
	for range 5 {
		if stop = tryRay(t, venv, ports, server); stop != nil {
			return stop
		}
	}
	t.Fatal("Ray does not start")
	return nil
}

// tryRay returns nil where a part of Ray has given up.
func tryRay(t *testing.T, venv string, ports []int, server string) (stop func()) {
	t.Helper()
	began := time.Now()
	dir, err := os.MkdirTemp("/tmp", "ray") // short: the paths of its sockets are limited to 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(t.TempDir(), "ray.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(venv, "bin", "ray"), "start", "--head", "--block", "--num-cpus=2", "--num-gpus=0",
		"--object-store-memory=100000000", "--node-ip-address=127.0.0.1", "--port="+strconv.Itoa(ports[0]), "--dashboard-host=127.0.0.1",
		"--dashboard-port="+strconv.Itoa(ports[1]), "--ray-client-server-port="+strconv.Itoa(ports[2]), "--disable-usage-stats",
		"--temp-dir="+dir)
	// Jobs have the PATH of `ray start`. The memory monitor counts what others use of this machine.
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(venv, "bin")+":"+os.Getenv("PATH"), "RAY_DISABLE_MEMORY_MONITOR=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }()
	stop = func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		<-exited
		endThoseOf(dir)
		_ = os.RemoveAll(dir)
	}
	answers := func(method, path, body string) string {
		req, err := http.NewRequest(method, server+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return ""
		}
		defer resp.Body.Close()
		raw, _ := io.ReadAll(resp.Body)
		return string(raw)
	}
	n, ended := 0, false
	eventually(t, "Ray takes jobs (log: "+log.Name()+")", func() bool {
		select {
		case <-exited:
			ended = true
			return true
		default:
		}
		n++ // until its agent is there it answers "No available agent"
		job := `{"entrypoint":"true","submission_id":"ready-` + strconv.Itoa(n) + `"}`
		return strings.Contains(answers(http.MethodPost, "/api/jobs/", job), `"job_id"`)
	})
	if ended {
		raw, _ := os.ReadFile(log.Name())
		t.Logf("Ray has ended:\n%s", raw[max(0, len(raw)-600):])
		stop()
		return nil
	}
	t.Logf("Ray takes jobs after %v: %s", time.Since(began).Round(100*time.Millisecond), answers(http.MethodGet, "/api/version", ""))
	return stop
}

// endThoseOf kills the processes that have a folder of this test in their command line: Ray's daemons leave its process group.
func endThoseOf(dir string) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		raw, err := os.ReadFile(line)
		pid, perr := strconv.Atoi(filepath.Base(filepath.Dir(line)))
		if err == nil && perr == nil && pid != os.Getpid() && strings.Contains(string(raw), dir+"/") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
