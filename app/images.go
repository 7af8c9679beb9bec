package app

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"ctrloop/serving/creatives"
	trainerbridge "ctrloop/trainer-bridge"
)

// openDrawer returns what draws creatives, and starts its server where it needs one of ours.
func (a *App) openDrawer() (creatives.Drawer, error) {
	im := a.cfg.Images
	if im.Backend != ImagesDiffusion {
		return creatives.Scene{}, nil
	}
	server := im.Server
	if server == "" {
		address, err := a.startImageServer()
		if err != nil {
			return nil, err
		}
		server = "http://" + address
	}
	d, err := creatives.NewDiffusion(creatives.DiffusionConfig{Address: server, Timeout: im.Timeout, Patience: im.Patience})
	if err != nil {
		return nil, err
	}
	a.actors.onStop("image server connections", d.Close)
	return d, nil
}

// startImageServer starts the embedded image server and returns its address.
func (a *App) startImageServer() (string, error) {
	if err := a.preparePython(); err != nil { // the model that ships is unpacked with the trainer
		return "", err
	}
	if err := a.checkImageModel(); err != nil {
		return "", err
	}
	return a.startPythonServer("image", a.cfg.Images.Threads, "ctrloop_trainer.diffusion.serve", a.painter(a.trainerDir)...)
}

// imageModel is the folder of the image model; trainer is where the trainer is unpacked.
func (a *App) imageModel(trainer string) string {
	if a.cfg.Images.Model != "" {
		return a.cfg.Images.Model
	}
	return trainerbridge.ImageModel(trainer)
}

// checkImageModel finds out before anything starts what a server would say after five starts.
func (a *App) checkImageModel() error {
	index := filepath.Join(a.imageModel(a.trainerDir), "model_index.json")
	if _, err := os.Stat(index); err != nil {
		return fmt.Errorf("images.model: %w: want a diffusers folder, or images.backend: scene", err)
	}
	return nil
}

// painter names the image model on a Python command line.
func (a *App) painter(trainer string) []string {
	im := a.cfg.Images
	args := []string{"--model", a.imageModel(trainer), "--device", im.Device}
	if im.ControlNet != "" {
		args = append(args, "--controlnet", im.ControlNet)
	}
	return args
}

// renderer is the command with which training draws: what it learns to please must look like what is served. The
// program, the interpreter and the trainer's folder are those of the machine that trains.
func (a *App) renderer(exe, python, trainer, grammarFile string) []string {
	scene := []string{exe, "render", "pipe"}
	if a.cfg.Products != "" {
		scene = append(scene, "--products", a.cfg.Products)
	}
	if a.cfg.Images.Backend != ImagesDiffusion {
		return scene
	}
	// Jobs run with the trainer on PYTHONPATH, and so does what they start.
	paint := append([]string{python, "-m", "ctrloop_trainer.diffusion.pipe", "--grammar", grammarFile,
		"--threads", strconv.Itoa(a.cfg.Images.Threads)}, a.painter(trainer)...)
	return append(append(paint, "--"), scene...)
}
