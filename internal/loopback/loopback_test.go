package loopback

import (
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

func TestFreePortCanBeTaken(t *testing.T) {
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestPortsAreKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ports")
	if got := KeptPorts(file, 2); got != nil {
		t.Errorf("of no file: %v", got)
	}
	if err := KeepPorts(file, 9000, 8123); err != nil {
		t.Fatal(err)
	}
	if got := KeptPorts(file, 2); len(got) != 2 || got[0] != 9000 || got[1] != 8123 {
		t.Errorf("%v", got)
	}
	for _, damaged := range []string{"", "9000", "9000 x", "9000 0", "1 2 3"} {
		if err := os.WriteFile(file, []byte(damaged), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := KeptPorts(file, 2); got != nil {
			t.Errorf("of %q: %v", damaged, got)
		}
	}
}
