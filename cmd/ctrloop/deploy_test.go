package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"ctrloop/app"
	"ctrloop/internal/config"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"
)

// deployed is what a container of this binary is started with.
type deployed struct {
	Command     []string
	Environment map[string]string
	Volumes     []string
	Healthcheck struct{ Test []string }
}

// deployedServices are the services of deploy/compose.yaml that run this binary.
func deployedServices(t *testing.T) map[string]deployed {
	t.Helper()
	raw, err := os.ReadFile("../../deploy/compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var file struct{ Services map[string]deployed }
	if err := yaml.Unmarshal(raw, &file); err != nil {
		t.Fatal(err)
	}
	services := maps.Clone(file.Services)
	maps.DeleteFunc(services, func(_ string, s deployed) bool { return len(s.Command) == 0 || s.Command[0] != "up" })
	if len(services) < 3 {
		t.Fatalf("services of this binary: %v", slices.Collect(maps.Keys(services)))
	}
	return services
}

// mounted is the file beside compose.yaml that a container sees at a path.
func (s deployed) mounted(path string) string {
	for _, volume := range s.Volumes {
		if host, ok := strings.CutSuffix(strings.TrimSuffix(volume, ":ro"), ":"+path); ok {
			return filepath.Join("../../deploy", host)
		}
	}
	return path
}

// TestDeployedCommandsParse: every command line of the compose file is one of this binary, with a configuration that loads and
// services that exist.
func TestDeployedCommandsParse(t *testing.T) {
	t.Setenv("CLICKHOUSE_DSN", "clickhouse://ctrloop:ctrloop@clickhouse:9000/ctrloop?http_port=8123")
	for name, service := range deployedServices(t) {
		t.Run(name, func(t *testing.T) {
			args := slices.Clone(service.Command)
			for i, arg := range args {
				args[i] = service.mounted(arg)
			}
			cli := parsed(t, args)
			cfg, err := config.Load(cli.Up.Config, app.Default())
			if err != nil {
				t.Fatal(err)
			}
			targets, err := app.ParseTargets(cli.Up.Target)
			if err != nil {
				t.Fatal(err)
			}
			// Containers without Python have their models elsewhere.
			if slices.Contains(targets, app.Serving) && !slices.Contains(targets, app.Trainer) && len(cfg.Models.Servers) == 0 {
				t.Error("it serves and has neither model servers nor Python")
			}
			if cfg.ClickHouse.DSN == "" || len(cfg.Kafka.Brokers) == 0 {
				t.Error("it would start an engine or a broker of its own")
			}
			check := service.Healthcheck.Test
			if len(check) < 2 || check[0] != "CMD" || filepath.Base(check[1]) != "ctrloop" {
				t.Fatalf("health check %q: want a command of this binary, the image has no shell", check)
			}
			if cli := parsed(t, check[2:]); !cli.Status.Ready {
				t.Errorf("health check %q does not ask for readiness", check)
			}
			if cfg.Admin.Address == "" {
				t.Error("the health check has no listener to ask")
			}
		})
	}
}

// parsed is the command line as this binary reads it.
func parsed(t *testing.T, args []string) CLI {
	t.Helper()
	var cli CLI
	parser, err := kong.New(&cli)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parser.Parse(args); err != nil {
		t.Fatalf("%q: %v", args, err)
	}
	return cli
}

// TestDeployedEnvironmentIsRead: every variable that the compose file and the images set is one of this binary's options, or is
// named in the configuration that the service reads.
func TestDeployedEnvironmentIsRead(t *testing.T) {
	options := optionVariables(t)
	for name, service := range deployedServices(t) {
		text, err := os.ReadFile(service.mounted("/etc/ctrloop/config.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		for variable := range service.Environment {
			if !options[variable] && !strings.Contains(string(text), "${"+variable+"}") {
				t.Errorf("%s: nothing reads %s", name, variable)
			}
		}
	}
	raw, err := os.ReadFile("../../deploy/Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var command []string
	for line := range strings.Lines(string(raw)) {
		if set, ok := strings.CutPrefix(strings.TrimSpace(line), "ENV "); ok {
			for pair := range strings.FieldsSeq(set) {
				if variable, _, _ := strings.Cut(pair, "="); !options[variable] {
					t.Errorf("Dockerfile: nothing reads %s", variable)
				}
			}
		}
		if list, ok := strings.CutPrefix(strings.TrimSpace(line), "CMD "); ok {
			if err := json.Unmarshal([]byte(list), &command); err != nil {
				t.Fatalf("CMD %s: %v", list, err)
			}
			file := slices.Index(command, "/etc/ctrloop/config.yaml")
			if file < 0 {
				t.Fatalf("CMD %s reads no configuration", list)
			}
			command[file] = "../../deploy/config/compose.yaml" // a person mounts one
			parsed(t, command)
		}
	}
	if command == nil {
		t.Error("the images have no CMD")
	}
}

// optionVariables are the environment variables of the command line.
func optionVariables(t *testing.T) map[string]bool {
	t.Helper()
	var cli CLI
	parser, err := kong.New(&cli)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	var walk func(*kong.Node)
	walk = func(n *kong.Node) {
		for _, flag := range n.Flags {
			for _, variable := range flag.Envs {
				found[variable] = true
			}
		}
		for _, child := range n.Children {
			walk(child)
		}
	}
	walk(parser.Model.Node)
	return found
}

// TestSetupVariablesAreOptions keeps the test above honest: it must know some.
func TestSetupVariablesAreOptions(t *testing.T) {
	found := optionVariables(t)
	for _, want := range []string{"CTRLOOP_HOME", "CTRLOOP_DIR"} {
		if !found[want] {
			t.Errorf("%s is no option; there are %v", want, slices.Sorted(maps.Keys(found)))
		}
	}
}

// TestNothingIsCalledStatic: the binary loads the C library, and a page that says otherwise makes people build images that do
// not start.
func TestNothingIsCalledStatic(t *testing.T) {
	claim := regexp.MustCompile(`(?i)static(ally linked)? (linux )?binar|binary static|bin/ctrloop, static|distroless/static`)
	var files []string
	for _, pattern := range []string{"*.md", "Makefile", "deploy/*", "deploy/*/*", "docs/*.md", "docs/adr/*.md"} {
		found, err := filepath.Glob(filepath.Join("../..", pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %d files, %v", pattern, len(found), err)
		}
		files = append(files, found...)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			continue // a folder
		}
		if said := claim.Find(raw); said != nil {
			t.Errorf("%s says %q", file, said)
		}
	}
}
