package app

import "context"

type servingParts struct{}

func (a *App) startServing(context.Context) error { return nil }
