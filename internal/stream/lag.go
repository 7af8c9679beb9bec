package stream

import "context"

// shortSpan is the length up to which a lag is read to see whether it holds records at all: markers of
// transactions take an offset each and carry nothing.
const shortSpan = 100

// Lag is how many offsets of the topics the group has not committed, over all partitions. Ends of
// transactions do not count where nothing but them is left. 0 means that the group has seen everything
// that could be read when Lag was called.
func Lag(ctx context.Context, c Config, group string, topics ...string) (int64, error) {
	committed, err := CommittedOffsets(ctx, c, group)
	if err != nil {
		return 0, err
	}
	start, err := StartOffsets(ctx, c, topics...)
	if err != nil {
		return 0, err
	}
	end, err := EndOffsets(ctx, c, topics...)
	if err != nil {
		return 0, err
	}
	var total int64
	for tp, to := range end {
		from := start[tp]
		if at, ok := committed[tp]; ok {
			from = max(from, at.Offset)
		}
		n := max(0, to-from)
		if n > 0 && n <= shortSpan {
			var records int64
			if err := ReadRange(ctx, c, tp.Topic, tp.Partition, from, to, func(*Record) error { records++; return nil }); err != nil {
				return 0, err
			}
			if records == 0 {
				n = 0
			}
		}
		total += n
	}
	return total, nil
}
