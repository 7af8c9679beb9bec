package creatives

import (
	"strconv"
	"sync"
	"testing"

	"ctrloop/schemas"
)

// TestLooksSeeEveryPutThatHasReturned: of looks that run side by side, one builds the view and none may get the
// one before it.
func TestLooksSeeEveryPutThatHasReturned(t *testing.T) {
	l := NewLibrary()
	for i := range 2000 {
		id := strconv.Itoa(i)
		l.Put(schemas.Creative{ID: id, Product: "p"})
		if i%20 != 0 { // a larger library takes longer to build
			continue
		}
		var looks sync.WaitGroup
		start := make(chan struct{})
		for range 4 {
			looks.Go(func() {
				<-start
				if _, ok := l.Now().Get(id); !ok {
					t.Errorf("a look does not see creative %s", id)
				}
			})
		}
		close(start)
		looks.Wait()
	}
}
