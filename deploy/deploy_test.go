// Package deploy holds no code: it is here to test the files beside it.
package deploy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// composeFile is the part of a compose file that the tests look at.
type composeFile struct {
	Services map[string]struct {
		Image string
		Build struct {
			Context, Dockerfile, Target string
		}
		Ports     []string
		Volumes   []string
		DependsOn map[string]any `yaml:"depends_on"`
		Profiles  []string
	}
	Volumes map[string]any
}

func compose(t *testing.T) composeFile {
	t.Helper()
	raw, err := os.ReadFile("compose.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var c composeFile
	if err := yaml.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kafka", "clickhouse", "ctrloop", "vllm"} {
		if _, ok := c.Services[name]; !ok {
			t.Fatalf("there is no service %s", name)
		}
	}
	return c
}

func TestComposeNamesWhatExists(t *testing.T) {
	c := compose(t)
	stages := strings.Join(stageNames(t), " ") + " "
	for name, service := range c.Services {
		if build := service.Build; build.Context != "" {
			mustExist(t, name+": build", filepath.Join(build.Context, build.Dockerfile))
			if !strings.Contains(stages, build.Target+" ") {
				t.Errorf("%s builds the stage %s, the Dockerfile has %s", name, build.Target, stages)
			}
		} else if service.Image == "" {
			t.Errorf("%s has no image", name)
		}
		for _, volume := range service.Volumes {
			source, _, _ := strings.Cut(volume, ":")
			switch {
			case strings.HasPrefix(source, "."):
				mustExist(t, name+": volume", source)
			case strings.HasPrefix(source, "$"): // the user's
			default:
				if _, ok := c.Volumes[source]; !ok {
					t.Errorf("%s mounts the volume %s, which is not declared", name, source)
				}
			}
		}
		for needed := range service.DependsOn {
			if _, ok := c.Services[needed]; !ok {
				t.Errorf("%s depends on %s, which is not there", name, needed)
			}
		}
		for _, port := range service.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s publishes %s beyond this machine", name, port)
			}
		}
	}
}

func mustExist(t *testing.T, what, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// instructions returns the Dockerfile's lines, comments left out.
func instructions(t *testing.T) [][]string {
	t.Helper()
	raw, err := os.ReadFile("Dockerfile")
	if err != nil {
		t.Fatal(err)
	}
	var lines [][]string
	for line := range strings.Lines(string(raw)) {
		if words := strings.Fields(line); len(words) > 0 && !strings.HasPrefix(words[0], "#") {
			lines = append(lines, words)
		}
	}
	return lines
}

func stageNames(t *testing.T) []string {
	var names []string
	for _, words := range instructions(t) {
		if words[0] == "FROM" && len(words) == 4 {
			names = append(names, words[3])
		}
	}
	return names
}

func TestDockerfileCopiesWhatExists(t *testing.T) {
	copied := 0
	for _, words := range instructions(t) {
		if words[0] != "COPY" || strings.HasPrefix(words[1], "--from") {
			continue
		}
		for _, source := range words[1 : len(words)-1] {
			copied++
			mustExist(t, "COPY", filepath.Join("..", source))
		}
	}
	if copied == 0 {
		t.Error("nothing is copied")
	}
}

// TestImagesDoNotRunAsRoot looks at the last USER of each stage that is shipped.
func TestImagesDoNotRunAsRoot(t *testing.T) {
	users := make(map[string]string)
	stage := ""
	for _, words := range instructions(t) {
		switch words[0] {
		case "FROM":
			stage = words[3]
		case "USER":
			users[stage] = words[1]
		}
	}
	for _, stage := range []string{"service", "trainer"} {
		if user := users[stage]; user == "" || strings.HasPrefix(user, "0") || strings.HasPrefix(user, "root") {
			t.Errorf("stage %s runs as %q", stage, user)
		}
	}
}
