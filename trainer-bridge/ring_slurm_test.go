package trainerbridge

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"ctrloop/trainer-bridge/runner"
	"ctrloop/trainer-bridge/runner/slurm"
)

// slurmEnv is set where Slurm's daemons are installed and this user is root: `make slurm-ring`.
const slurmEnv = "CTRLOOP_TEST_SLURM"

func TestSlurmRing(t *testing.T) {
	if os.Getenv(slurmEnv) == "" {
		t.Skip("needs a real Slurm: make slurm-ring")
	}
	s := newSlurm(t)
	s.start(t)
	t.Cleanup(func() { s.stop() })
	address, gate := behind(t, s.address)
	cluster := slurm.New(slurm.Config{Address: address, User: "root", TokenFile: s.token, Path: os.Getenv("PATH")})
	ring{
		cluster: cluster, gate: gate, wantClass: FailUnstarted,
		want: func(r *runner.Resources) { r.CPUs = 500 },
		forget: func() {
			s.stop()
			if err := os.RemoveAll(filepath.Join(s.dir, "state")); err != nil {
				t.Fatal(err)
			}
			s.start(t)
		},
	}.test(t)
	t.Run("never starts while its node is down", func(t *testing.T) {
		s.control(t, "update", "nodename=ring", "state=down", "reason=test")
		tr := ring{cluster: cluster}.trial(t, "down", works)
		tr.StartTimeout = 5 * time.Second
		if e := tr.end(t, begin(t.Context(), tr.Remote, tr.job), FailUnstarted); !strings.Contains(e.err.Error(), "PENDING") {
			t.Errorf("the reason is not in %v", e.err)
		}
	})
	t.Run("refused", func(t *testing.T) {
		for what, want := range map[string]runner.Resources{"memory": {MemoryBytes: 1 << 40}, "gpus": {GPUs: 1}} {
			tr := ring{cluster: cluster}.trial(t, "refused-"+what, works)
			tr.Resources = want
			tr.end(t, begin(t.Context(), tr.Remote, tr.job), FailRefused)
		}
	})
	t.Run("a token that is no good", func(t *testing.T) {
		if err := os.WriteFile(s.token, []byte("eyJhbGciOiJIUzI1NiJ9.e30.x"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := cluster.Look(t.Context(), "x"); err == nil || strings.Contains(err.Error(), runner.ErrUnknown.Error()) {
			t.Errorf("%v", err)
		} else {
			t.Log(err)
		}
	})
}

// slurmCluster is a cluster of one node, with all its state in a folder.
type slurmCluster struct {
	dir, address, token string
	ports               []int
	running             []*exec.Cmd
}

func newSlurm(t *testing.T) *slurmCluster {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "slurm") // short: sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := &slurmCluster{dir: dir, token: filepath.Join(dir, "token"), ports: []int{freePort(t), freePort(t), freePort(t)}}
	s.address = fmt.Sprintf("http://127.0.0.1:%d", s.ports[2])
	for name, mode := range map[string]os.FileMode{"munge.key": 0o400, "jwt.key": 0o600} {
		key := bytes.Repeat([]byte(name), 200) // a cluster of a minute, on loopback
		if err := os.WriteFile(filepath.Join(dir, name), key, mode); err != nil {
			t.Fatal(err)
		}
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	cgroup := "CgroupPlugin=autodetect\n"
	if fileExists("/sys/fs/cgroup/memory") {
		cgroup = "CgroupPlugin=cgroup/v1\n"
	}
	// The node has processors for all tests at once, and the little memory that they need.
	conf := fmt.Sprintf(`ClusterName=ring
SlurmctldHost=%s(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=%[2]s/munge.s
CredType=cred/munge
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key=%[2]s/jwt.key
SlurmctldPort=%[3]d
SlurmdPort=%[4]d
StateSaveLocation=%[2]s/state
SlurmdSpoolDir=%[2]s/spool
SlurmctldPidFile=%[2]s/ctld.pid
SlurmdPidFile=%[2]s/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
ReturnToService=2
DefMemPerCPU=16
KillWait=20
GresTypes=gpu
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
NodeName=ring NodeHostname=%[1]s NodeAddr=127.0.0.1 CPUs=16 RealMemory=1000 State=UNKNOWN
PartitionName=debug Nodes=ring Default=YES MaxTime=60 State=UP
`, host, dir, s.ports[0], s.ports[1])
	for name, text := range map[string]string{"slurm.conf": conf, "cgroup.conf": cgroup} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil { // slurmrestd is nobody
		t.Fatal(err)
	}
	return s
}

// run starts a daemon in the foreground.
func (s *slurmCluster) run(t *testing.T, name string, args ...string) {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "SLURM_CONF="+filepath.Join(s.dir, "slurm.conf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stdout, cmd.Stderr = log, log
	if name == "slurmrestd" { // it refuses to be root
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: 65534, Gid: 65534}
		cmd.Env = append(cmd.Env, "SLURM_JWT=daemon")
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s.running = append(s.running, cmd)
}

func (s *slurmCluster) control(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("scontrol", args...)
	cmd.Env = append(os.Environ(), "SLURM_CONF="+filepath.Join(s.dir, "slurm.conf"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("scontrol %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *slurmCluster) start(t *testing.T) {
	t.Helper()
	began := time.Now()
	path := func(name string) string { return filepath.Join(s.dir, name) }
	for _, dir := range []string{"state", "spool"} {
		if err := os.MkdirAll(path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	s.run(t, "munged", "--foreground", "--force", "--key-file="+path("munge.key"), "--socket="+path("munge.s"),
		"--pid-file="+path("munge.pid"), "--log-file="+path("munge.log"), "--seed-file="+path("munge.seed"))
	eventually(t, "munge", func() bool { return fileExists(path("munge.s")) })
	s.run(t, "slurmctld", "-D", "-f", path("slurm.conf"))
	s.run(t, "slurmd", "-D", "-f", path("slurm.conf"), "-N", "ring")
	eventually(t, "an idle node", func() bool {
		cmd := exec.Command("sinfo", "-h", "-o", "%T")
		cmd.Env = append(os.Environ(), "SLURM_CONF="+path("slurm.conf"))
		out, err := cmd.Output()
		return err == nil && strings.TrimSpace(string(out)) == "idle"
	})
	_, token, _ := strings.Cut(s.control(t, "token", "lifespan=3600", "username=root"), "SLURM_JWT=")
	if err := os.WriteFile(s.token, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	s.run(t, "slurmrestd", "-a", "rest_auth/jwt", "-s", "openapi/v0.0.38", fmt.Sprintf("127.0.0.1:%d", s.ports[2]))
	eventually(t, "slurmrestd", func() bool {
		resp, err := http.Get(s.address + "/slurm/v0.0.38/ping")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusUnauthorized // it wants a token
	})
	t.Logf("Slurm is up after %v on %d processors: %s", time.Since(began).Round(100*time.Millisecond), runtime.NumCPU(),
		strings.TrimSpace(s.control(t, "--version")))
}

// stop ends the daemons and what they run.
func (s *slurmCluster) stop() {
	for _, cmd := range s.running {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	}
	s.running = nil
	endThoseOf(s.dir)
	_ = os.Remove(filepath.Join(s.dir, "munge.s"))
}
