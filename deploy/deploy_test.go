// Package deploy holds no code: it is here to test the files beside it.
package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

// composeFile is the part of a compose file that the tests look at.
type composeFile struct {
	Name     string
	Services map[string]service
	Volumes  map[string]any
}

// service is a service of it.
type service struct {
	Image string
	Build struct {
		Context, Dockerfile, Target string
	}
	Command     []string
	Ports       []string
	Volumes     []string
	DependsOn   map[string]any `yaml:"depends_on"`
	Profiles    []string
	Ulimits     map[string]any
	Restart     string
	Healthcheck map[string]any
	Environment map[string]string
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
	for _, name := range []string{"kafka", "clickhouse", "ctrloop", "small", "serving", "vllm"} {
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

// TestComposeImages: each is a variable with the public image as its default, which names a version (ours are built), so that
// local/images.env can put what is built without a registry in its place.
func TestComposeImages(t *testing.T) {
	raw, err := os.ReadFile("local/images.env")
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^\$\{(IMAGE_[A-Z]+):-([^:}]+)(?::([^}]+))?\}$`)
	for name, service := range compose(t).Services {
		parts := form.FindStringSubmatch(service.Image)
		if parts == nil {
			t.Errorf("%s: image %q is not a variable with a default", name, service.Image)
			continue
		}
		variable, tag := parts[1], parts[3]
		if service.Build.Context == "" && (tag == "" || tag == "latest") {
			t.Errorf("%s: image %q names no version", name, service.Image)
		}
		if len(service.Profiles) == 0 && !strings.Contains(string(raw), "\n"+variable+"=") {
			t.Errorf("%s: local/images.env has no %s", name, variable)
		}
	}
}

// TestComposePublishesTheEdge: events go in, questions are asked, and each way to serve has its console, all on ports that a
// variable moves.
func TestComposePublishesTheEdge(t *testing.T) {
	c := compose(t)
	for name, port := range map[string]string{"ctrloop": "8081", "clickhouse": "9000", "serving": "8080", "small": "8080"} {
		ports := c.Services[name].Ports
		if !slices.ContainsFunc(ports, func(p string) bool {
			return strings.HasSuffix(p, "}:"+port) && strings.HasPrefix(p, "127.0.0.1:${PORT_")
		}) {
			t.Errorf("%s publishes %v, want the port %s by a variable", name, ports, port)
		}
	}
}

// TestComposeStartsAnywhere: nothing is asked of the host that it may refuse, nothing that only one generation of Docker Compose
// knows, and what a crash ends comes back.
func TestComposeStartsAnywhere(t *testing.T) {
	c := compose(t)
	if c.Name != "" {
		t.Error("docker-compose 1.29 refuses a name in the file: .env has it")
	}
	for name, service := range c.Services {
		if service.Ulimits != nil {
			t.Errorf("%s asks for limits %v: a host that allows less does not start it", name, service.Ulimits)
		}
		if service.Restart != "unless-stopped" {
			t.Errorf("%s restarts %q", name, service.Restart)
		}
		if service.Healthcheck == nil && name != "vllm" { // the gateway watches its servers by itself
			t.Errorf("%s has no health check", name)
		}
	}
}

// TestVLLMIsServedAsItIsTrained: the server's limits are those that serving counts on.
func TestVLLMIsServedAsItIsTrained(t *testing.T) {
	raw, err := os.ReadFile("config/compose-vllm.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var serving struct {
		Models struct {
			Servers []string
			Base    string
		}
		Serving struct {
			Swap struct {
				MaxRank   int     `yaml:"max_rank"`
				Tolerance float64 `yaml:"logprob_tolerance"`
			}
		}
	}
	if err := yaml.Unmarshal(raw, &serving); err != nil {
		t.Fatal(err)
	}
	vllm := compose(t).Services["vllm"]
	for _, want := range []string{
		serving.Models.Base, "--max-lora-rank=" + strconv.Itoa(serving.Serving.Swap.MaxRank), "--generation-config=vllm",
		"--enable-lora", "--served-model-name=prompt-base", "--dtype=${VLLM_DTYPE:-bfloat16}",
	} {
		if !slices.Contains(vllm.Command, want) {
			t.Errorf("vllm %v: want %s", vllm.Command, want)
		}
	}
	if vllm.Environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] != "True" {
		t.Error("vLLM takes no adapters at run time")
	}
	if serving.Serving.Swap.Tolerance != 0.15 {
		t.Errorf("tolerance %v, of bfloat16 it is 0.15", serving.Serving.Swap.Tolerance)
	}
	if len(serving.Models.Servers) != 1 || serving.Models.Servers[0] != "http://vllm:8000" {
		t.Errorf("model servers %v", serving.Models.Servers)
	}
}

func mustExist(t *testing.T, what, path string) {
	t.Helper()
	if _, err := os.Stat(path); err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// instructions returns a Dockerfile's lines, comments left out.
func instructions(t *testing.T, file string) [][]string {
	t.Helper()
	raw, err := os.ReadFile(file)
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
	for _, words := range instructions(t, "Dockerfile") {
		if words[0] == "FROM" && len(words) == 4 {
			names = append(names, words[3])
		}
	}
	return names
}

func TestDockerfileCopiesWhatExists(t *testing.T) {
	copied := 0
	for _, words := range instructions(t, "Dockerfile") {
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
	for _, words := range instructions(t, "Dockerfile") {
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

// TestLocalImageIsTheSame: the image that is built where no registry is reached differs from the public one in its base alone.
func TestLocalImageIsTheSame(t *testing.T) {
	last := func(file string) (from []string, rest []string) {
		for _, words := range instructions(t, file) {
			switch words[0] {
			case "FROM":
				from, rest = words, nil
			case "COPY":
				// Sources differ: a stage there, a folder of gathered files here. Where the base comes from is no instruction there.
				if to := words[len(words)-1]; to != "/" {
					rest = append(rest, "COPY to "+to)
				}
			default:
				rest = append(rest, strings.Join(words, " "))
			}
		}
		return from, rest
	}
	public, want := last("Dockerfile")
	local, got := last("local/Dockerfile")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("local/Dockerfile differs (-Dockerfile +local):\n%s", diff)
	}
	if len(public) != 4 || public[3] != "service" || len(local) != 4 || local[1] != "scratch" || local[3] != "service" {
		t.Errorf("stages %v and %v", public, local)
	}
}

// TestServiceImageHasACLibrary: the binary is linked against it, and an image without says "no such file or directory".
func TestServiceImageHasACLibrary(t *testing.T) {
	for _, words := range instructions(t, "Dockerfile") {
		if words[0] == "FROM" && words[3] == "service" && !strings.HasPrefix(words[1], "gcr.io/distroless/base") {
			t.Errorf("the base of the service is %s", words[1])
		}
	}
}
