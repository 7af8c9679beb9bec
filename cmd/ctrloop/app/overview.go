package app

import (
	"context"
	"time"

	"ctrloop/serving/console"
)

// overview fills the console's first page.
type overview struct{ app *App }

// Overview implements console.Source.
func (o *overview) Overview(context.Context) (console.Overview, error) {
	return console.Overview{Time: time.Now()}, nil
}
