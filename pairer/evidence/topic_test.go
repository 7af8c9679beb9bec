package evidence

// topic is a partition of evidence.v1 as a test keeps it: everything written, and what compaction leaves.
type topic struct {
	records []record
}

type record struct{ key, value []byte }

func (t *topic) end() int64 { return int64(len(t.records)) }

// compact leaves the last record of each key where it is, and takes the others away.
func (t *topic) compact() {
	last := map[string]int{}
	for i, r := range t.records {
		if r.key != nil {
			last[string(r.key)] = i
		}
	}
	for i, r := range t.records {
		if r.key != nil && last[string(r.key)] != i {
			t.records[i] = record{}
		}
	}
}

// load reads the topic from an offset on.
func (t *topic) load(p *Partition, from int64) error {
	for i := from; i < t.end(); i++ {
		if r := t.records[i]; r.key != nil {
			if err := p.Load(r.key, r.value, i); err != nil {
				return err
			}
		}
	}
	return p.Loaded()
}
