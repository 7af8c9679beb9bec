package decide

import (
	"encoding/json"
	"strconv"
)

// encodeBatch writes {"decisions": [...]}. Answers are written by hand because they are most of a decision's cost;
// TestJSONIsWhatTheStandardLibraryWrites holds them against encoding/json.
func encodeBatch(ds []Decision) []byte {
	out := make([]byte, 0, 16+400*len(ds))
	out = append(out, `{"decisions":[`...)
	for i := range ds {
		if i > 0 {
			out = append(out, ',')
		}
		out = ds[i].append(out)
	}
	return append(out, "]}"...)
}

func (d *Decision) append(b []byte) []byte {
	b = field(append(b, '{'), "impression_id", d.ImpressionID)
	b = field(append(b, ','), "creative", d.Creative)
	b = field(append(b, ','), "creative_url", d.CreativeURL)
	b = field(append(b, ','), "experiment", d.Experiment)
	b = field(append(b, ','), "variant", d.Variant)
	b = field(append(b, ','), "model_version", d.ModelVersion)
	b = field(append(b, ','), "policy", d.Policy)
	b = append(b, `,"propensity":`...)
	b = strconv.AppendFloat(b, d.Propensity, 'f', -1, 64)
	b = append(b, `,"arm_share":`...)
	b = strconv.AppendFloat(b, d.ArmShare, 'f', -1, 64)
	b = field(append(b, ','), "product", d.Product)
	if d.Placement != "" {
		b = field(append(b, ','), "placement", d.Placement)
	}
	if d.Position != 0 {
		b = strconv.AppendUint(append(b, `,"position":`...), uint64(d.Position), 10)
	}
	if d.Error != "" {
		b = field(append(b, ','), "error", d.Error)
	}
	return append(b, '}')
}

func field(b []byte, name, value string) []byte {
	b = append(append(append(b, '"'), name...), `":`...)
	for i := range len(value) {
		if c := value[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			quoted, _ := json.Marshal(value) // strings always encode
			return append(b, quoted...)
		}
	}
	return append(append(append(b, '"'), value...), '"')
}
