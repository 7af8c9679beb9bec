package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// vagueNames say nothing about what is inside, and so attract everything.
var vagueNames = []string{"util", "utils", "common", "helper", "helpers", "misc", "base", "shared"}

func TestPackagesAreNamedAndDocumented(t *testing.T) {
	for _, p := range ourPackages(t) {
		if slices.Contains(vagueNames, p.Name) {
			t.Errorf("%s: the package name %q says nothing", p.ImportPath, p.Name)
		}
		if p.Doc == "" {
			t.Errorf("%s has no package comment", p.ImportPath)
		}
	}
}

// eachFile parses every shipped Go file, tests left out.
func eachFile(t *testing.T, f func(p pkg, file *ast.File, fset *token.FileSet)) {
	t.Helper()
	for _, p := range ourPackages(t) {
		fset := token.NewFileSet()
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(fset, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
			if err != nil {
				t.Errorf("%s: %v", p.ImportPath, err)
				continue
			}
			f(p, file, fset)
		}
	}
}

// selected returns "package.Name" for a selector on an imported package, by the package's own name.
func selected(n ast.Node) string {
	s, ok := n.(*ast.SelectorExpr)
	if !ok {
		return ""
	}
	x, ok := s.X.(*ast.Ident)
	if !ok {
		return ""
	}
	return x.Name + "." + s.Sel.Name
}

// TestLoggersAreHandedDown finds loggers built outside the package that builds them.
func TestLoggersAreHandedDown(t *testing.T) {
	banned := []string{
		"zerolog.New",
		"zerolog.NewConsoleWriter",
		"zerolog.ConsoleWriter",
		"zerolog.SetGlobalLevel",
		"prometheus.DefaultRegisterer",
		"prometheus.MustRegister",
		"promauto.NewCounter",
	}
	eachFile(t, func(p pkg, file *ast.File, fset *token.FileSet) {
		if under(p.folder(), "internal/telemetry") {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if name := selected(n); slices.Contains(banned, name) {
				t.Errorf("%s: %s: loggers and registries are built in internal/telemetry and handed down", fset.Position(n.Pos()), name)
			}
			return true
		})
	})
}

// TestListenersAreOfOneKit finds servers and refusals beside internal/httpapi, where errors have one shape and clients their
// bounds, and handlers that let everybody in outside of tests.
func TestListenersAreOfOneKit(t *testing.T) {
	banned := []string{
		"http.Server", "http.Error", "http.NotFound", "http.ListenAndServe", "http.ListenAndServeTLS", "http.Serve", "http.ServeTLS",
		"http.NewServeMux", "http.DefaultServeMux", "http.HandleFunc", "http.Handle", "httpapi.Open", "httpapi.OpenAs",
	}
	found := false
	eachFile(t, func(p pkg, file *ast.File, fset *token.FileSet) {
		// The fake of vLLM stands in for a server that is not ours.
		inside := under(p.folder(), "internal/httpapi")
		if p.folder() == "serving/backend/vllmfake" {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			name := selected(n)
			if inside {
				found = found || name == "http.Server"
				return true
			}
			if slices.Contains(banned, name) {
				t.Errorf("%s: %s: listeners, and what they refuse, are of internal/httpapi", fset.Position(n.Pos()), name)
			}
			return true
		})
	})
	if !found {
		t.Error("internal/httpapi builds no server: has the way of building one changed?")
	}
}

// TestPurePackagesReadNoClock finds the impure corners of otherwise harmless packages.
func TestPurePackagesReadNoClock(t *testing.T) {
	banned := []string{
		"time.Now", "time.Since", "time.Until", "time.Sleep", "time.After", "time.Tick", "time.NewTimer", "time.NewTicker", "time.AfterFunc",
		"rand.Int", "rand.IntN", "rand.Intn", "rand.Float64", "rand.Perm", "rand.Shuffle", "rand.NormFloat64", "rand.Uint64", "rand.N",
	}
	eachFile(t, func(p pkg, file *ast.File, fset *token.FileSet) {
		if !slices.Contains(pure, p.folder()) {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if name := selected(n); slices.Contains(banned, name) {
				t.Errorf("%s: %s in a pure package: take it as an argument", fset.Position(n.Pos()), name)
			}
			return true
		})
	})
}

// TestMetricNames finds metrics outside our namespace.
func TestMetricNames(t *testing.T) {
	found := 0
	eachFile(t, func(_ pkg, file *ast.File, fset *token.FileSet) {
		ast.Inspect(file, func(n ast.Node) bool {
			opts, ok := n.(*ast.CompositeLit)
			if !ok || !isMetricOpts(opts) {
				return true
			}
			found++
			if name := metricName(opts); name != "" && !strings.HasPrefix(name, "ctrloop_") {
				t.Errorf("%s: metric %q does not start with ctrloop_", fset.Position(n.Pos()), name)
			}
			return true
		})
	})
	if found < 5 {
		t.Errorf("only %d metrics are found: has the way of declaring them changed?", found)
	}
}

// isMetricOpts reports whether a literal is one of the option structs of the Prometheus client.
func isMetricOpts(lit *ast.CompositeLit) bool {
	name := selected(lit.Type)
	return strings.HasPrefix(name, "prometheus.") && strings.HasSuffix(name, "Opts") && !strings.HasPrefix(name, "prometheus.Process")
}

// metricName returns the name that the options make, as far as it is written in constants; "" where it is a
// variable (then the function that gets it is where the prefix is).
func metricName(lit *ast.CompositeLit) string {
	parts := make(map[string]string)
	for _, element := range lit.Elts {
		field, ok := element.(*ast.KeyValueExpr)
		if !ok {
			continue
		}
		if key, ok := field.Key.(*ast.Ident); ok {
			parts[key.Name] = leadingText(field.Value)
		}
	}
	var given []string
	for _, key := range []string{"Namespace", "Subsystem", "Name"} {
		if parts[key] != "" {
			given = append(given, parts[key])
		}
	}
	return strings.Join(given, "_")
}

// leadingText returns the constant text at the start of an expression, "" where it starts with something else.
func leadingText(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, _ := strconv.Unquote(e.Value)
		return text
	case *ast.BinaryExpr:
		return leadingText(e.X)
	}
	return ""
}

// TestFoldersMatchTheMap compares the packages with the map of docs/design.md: a folder that it does not mention
// cannot be found by a newcomer.
func TestFoldersMatchTheMap(t *testing.T) {
	design := readText(t, "../../docs/design.md")
	for _, p := range ourPackages(t) {
		folder := p.folder()
		known := false
		for ; folder != "." && !known; folder = path.Dir(folder) {
			known = strings.Contains(design, "`"+folder+"`") ||
				// A row may name several siblings: `internal/config`, `telemetry`, `setup`.
				(path.Dir(folder) == "internal" && strings.Contains(design, "`"+path.Base(folder)+"`"))
		}
		if !known {
			t.Errorf("docs/design.md does not mention %s", p.folder())
		}
	}
}
