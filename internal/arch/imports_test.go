package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// module is this module's path.
const module = "ctrloop"

// services never import each other.
var services = []string{"ingest", "joiner", "pairer", "trainer-bridge", "serving"}

// programs are the composition root and what is built over it; only commands and tests of the binary use them.
var programs = []string{"app", "demo", "lab", "bench", "replay"}

// pure packages take time and randomness as arguments and do no I/O: they are tested in virtual time and can be
// replayed to the same result.
var pure = []string{
	"schemas", "schemas/control",
	"joiner/window", "pairer/pairs", "pairer/evidence",
	"serving/experiment/assign", "serving/experiment/ramp", "serving/experiment/simulate",
	"internal/stats", "internal/imaging/grammar",
}

// pureMayImport lists what pure packages import besides the harmless part of the standard library.
var pureMayImport = []string{
	module + "/schemas", module + "/internal/invariant", module + "/internal/stats",
	module + "/serving/experiment/assign", module + "/serving/experiment/ramp", // pure themselves
	"gonum.org/v1/gonum", "google.golang.org/protobuf",
}

// impure is the part of the standard library that reaches outside the process.
var impure = []string{"os", "net", "syscall", "crypto/rand", "database/sql", "log", "runtime/debug"}

// doors are dependencies with one package that imports them, so that an upgrade or a replacement is one folder.
var doors = []struct {
	dependency string
	door       string // a package and what is below it
	reason     string
}{
	{"github.com/twmb/franz-go", "internal/stream", "fetch, commit and transaction rules are kept in one place"},
	{"github.com/ClickHouse", "internal/warehouse", "insert tokens and limits on people's SQL are kept in one place"},
	{
		"github.com/ebitengine/purego",
		"internal/warehouse",
		"a library that is loaded can crash the process: only the engine's child loads one",
	},
	{"github.com/parquet-go", "internal/columnar", "tables of data sets have one door"},
	{"github.com/apache/arrow", "internal/columnar", "the module has moved to another path: the bump must be one folder"},
	{"github.com/rs/zerolog/log", "", "it is a global logger; loggers are handed down"},
	{"github.com/stretchr/testify", "", "tests use the standard library and go-cmp"},
	{"github.com/testcontainers", "", "containers are for tests"},
	{"github.com/google/go-cmp", "", "it panics on unexported fields: for tests only"},
	{"github.com/chromedp", "", "the browser is for tests"},
	{"go.uber.org/goleak", "", "for tests"},
	{"pgregory.net/rapid", "", "for tests"},
	{"unsafe", "internal/warehouse", "only the engine's library needs it"},
}

// pkg is what `go list` says of a package.
type pkg struct {
	ImportPath string
	Name       string
	Dir        string
	Doc        string
	GoFiles    []string
	Imports    []string
	Standard   bool
	Module     *struct{ Path string }
}

// folder is the package's path inside the module.
func (p pkg) folder() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// packages lists our packages, with what the shipped code (not the tests) imports.
var packages = sync.OnceValues(func() ([]pkg, error) {
	cmd := exec.Command("go", "list", "-e", "-deps", "-json=ImportPath,Name,Dir,Doc,GoFiles,Imports,Standard,Module", "./...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, &stderr)
	}
	var ours []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		err := decoder.Decode(&p)
		if errors.Is(err, io.EOF) {
			return ours, nil
		}
		if err != nil {
			return nil, fmt.Errorf("go list: %w", err)
		}
		if p.Module != nil && p.Module.Path == module && len(p.GoFiles) > 0 {
			ours = append(ours, p)
		}
	}
})

func ourPackages(t *testing.T) []pkg {
	t.Helper()
	ours, err := packages()
	if err != nil {
		t.Fatal(err)
	}
	if len(ours) < 20 {
		t.Fatalf("only %d packages are found", len(ours))
	}
	return ours
}

// under reports whether a path is the root or below it.
func under(path, root string) bool { return path == root || strings.HasPrefix(path, root+"/") }

func underAny(path string, roots []string) bool {
	for _, root := range roots {
		if under(path, root) {
			return true
		}
	}
	return false
}

// violation says which rule an import breaks and why the rule is there, "" for none.
func violation(from, imported string) string {
	inside, ours := strings.CutPrefix(imported, module+"/")
	switch {
	case ours && under(inside, "cmd") && !under(from, "cmd"):
		return "nothing imports cmd: it parses flags and prints"
	case ours && underAny(inside, programs) && !underAny(from, append([]string{"cmd", "e2e"}, programs...)):
		return "the composition root and the programs over it are above the services"
	case ours && under(from, "schemas") && !under(inside, "schemas"):
		return "schemas imports nothing of ours: it is where all others meet"
	case under(from, "schemas") && (under(imported, "net") || imported == "os"):
		return "schemas does no I/O"
	case ours && under(from, "internal") && underAny(inside, services):
		return "internal packages serve the services and do not know them"
	case ours && serviceOf(from) != "" && serviceOf(inside) != "" && serviceOf(from) != serviceOf(inside):
		return "services meet in topics, tables and artifacts, which schemas names"
	}
	for _, d := range doors {
		if under(imported, d.dependency) && (d.door == "" || !under(from, d.door)) && from != "schemas/eventpb" {
			return d.reason
		}
	}
	for _, p := range pure {
		if from == p && !pureImport(imported) {
			return "the package is pure: time and randomness are arguments, and it does no I/O"
		}
	}
	return ""
}

// serviceOf returns the service that a folder belongs to, or "".
func serviceOf(folder string) string {
	for _, s := range services {
		if under(folder, s) {
			return s
		}
	}
	return ""
}

// pureImport reports whether a pure package may import it.
func pureImport(imported string) bool {
	if underAny(imported, pureMayImport) {
		return true
	}
	first, _, _ := strings.Cut(imported, "/")
	standard := !strings.Contains(first, ".") && first != module
	return standard && !underAny(imported, impure)
}

func TestImports(t *testing.T) {
	for _, p := range ourPackages(t) {
		for _, imported := range p.Imports {
			if why := violation(p.folder(), imported); why != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, imported, why)
			}
		}
	}
}

// TestRulesBite shows each rule an import that it must refuse, and one beside it that it must not.
func TestRulesBite(t *testing.T) {
	for _, test := range []struct {
		from, imported string
		allowed        bool
	}{
		{"internal/stream", "ctrloop/app", false},
		{"joiner", "ctrloop/cmd/ctrloop", false},
		{"joiner", "ctrloop/app", false},
		{"cmd/ctrloop", "ctrloop/app", true},
		{"demo", "ctrloop/app", true},
		{"schemas/control", "ctrloop/internal/stats", false},
		{"schemas/control", "ctrloop/schemas", true},
		{"schemas", "net/http", false},
		{"internal/world", "ctrloop/joiner/window", false},
		{"joiner", "ctrloop/pairer", false},
		{"trainer-bridge", "ctrloop/serving/swap", false},
		{"joiner", "ctrloop/joiner/window", true},
		{"joiner", "github.com/twmb/franz-go/pkg/kgo", false},
		{"internal/stream/streamtest", "github.com/twmb/franz-go/pkg/kfake", true},
		{"serving", "github.com/ClickHouse/clickhouse-go/v2", false},
		{"pairer", "github.com/apache/arrow/go/v17/arrow", false},
		{"internal/columnar", "github.com/apache/arrow/go/v17/arrow/ipc", true},
		{"serving", "github.com/google/go-cmp/cmp", false},
		{"joiner", "github.com/rs/zerolog", true},
		{"joiner", "github.com/rs/zerolog/log", false},
		{"joiner/window", "os", false},
		{"joiner/window", "ctrloop/internal/stream", false},
		{"joiner/window", "github.com/google/uuid", false},
		{"joiner/window", "ctrloop/schemas", true},
		{"joiner/window", "slices", true},
		{"internal/process", "unsafe", false},
	} {
		if why := violation(test.from, test.imported); (why == "") != test.allowed {
			t.Errorf("%s imports %s: %q", test.from, test.imported, why)
		}
	}
}

// TestPurePackagesExist keeps the list of pure packages true when folders move.
func TestPurePackagesExist(t *testing.T) {
	have := make(map[string]bool)
	for _, p := range ourPackages(t) {
		have[p.folder()] = true
	}
	for _, name := range pure {
		if !have[name] {
			t.Errorf("%s is listed as pure and does not exist", name)
		}
	}
}
