package app

import (
	"fmt"
	"path/filepath"

	"ctrloop/internal/setup"
	"ctrloop/serving/rollout"
	trainerbridge "ctrloop/trainer-bridge"
)

// preparePython finds the Python environment and unpacks the trainer beside it. Whatever starts Python calls it, and nothing
// else does: the environment is large, and a machine of other services has none.
func (a *App) preparePython() (err error) {
	if a.python == "" {
		if a.python, err = setup.Python(a.opt.Home, trainerbridge.Lock()); err != nil {
			return err
		}
	}
	return a.unpackTrainer()
}

// unpackTrainer writes out what this binary carries of the trainer: its source and the models that ship. It needs no Python.
func (a *App) unpackTrainer() (err error) {
	if a.trainerDir == "" {
		a.trainerDir, err = trainerbridge.Extract(filepath.Join(a.opt.Home, trainerbridge.Folder))
	}
	return err
}

// prepareBase finds the base prompt model.
func (a *App) prepareBase() (err error) {
	if a.base == "" {
		a.base, err = a.pickBase()
	}
	return err
}

// pickBase returns the folder of the base prompt model. Adapters fit one base only, and another release may
// ship another base: a folder stays with the one that its champion belongs to, kept among its artifacts.
func (a *App) pickBase() (string, error) {
	if a.cfg.Models.Base != "" {
		return a.cfg.Models.Base, nil
	}
	if err := a.unpackTrainer(); err != nil {
		return "", err
	}
	digest, err := a.store.PutDir(trainerbridge.BaseModel(a.trainerDir))
	if err != nil {
		return "", err
	}
	st := a.control.State()
	if champion := st.Models[st.Routes[rollout.Logical].Champion]; champion != nil {
		if digest = champion.Base; digest == "" {
			digest = champion.Artifact
		}
	}
	if !a.store.Has(digest) {
		return "", fmt.Errorf(
			"the live model belongs to the base %.12s, which is neither among the artifacts of %s nor shipped with this release: restore the "+
				"folder, or name the base with models.base",
			digest,
			a.opt.Dir,
		)
	}
	return a.store.Path(digest), nil
}
