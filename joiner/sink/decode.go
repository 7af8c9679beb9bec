package sink

import (
	"fmt"

	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// decodeLabel reads an eventpb.Label into row, its names into the dictionaries of block. It does what
// proto.Unmarshal of both messages does (tested), without their garbage.
func decodeLabel(value []byte, row *warehouse.Label, block *warehouse.LabelBlock) error {
	var l eventpb.LabelView
	if err := l.Read(value); err != nil {
		return err
	}
	if l.Kind < 0 || l.Kind > eventpb.LabelKind_LABEL_KIND_CORRECTED {
		return fmt.Errorf("label: unknown kind %d: this sink is older than the joiner", l.Kind)
	}
	row.Kind, row.Clicked, row.ClickDelayMS, row.Clicks = int8(l.Kind), l.Clicked, l.ClickDelayMS, l.Clicks
	row.WatermarkMS, row.Version, row.Weight, row.Suspect, row.Bot = l.WatermarkMS, l.Version, l.Weight, l.Suspect, l.Bot
	if err := decodeImpression(l.Impression, row, block); err != nil {
		return fmt.Errorf("impression of a label: %w", err)
	}
	return nil
}

// decodeImpression leaves out request id and schema, which are not in the table.
func decodeImpression(b []byte, row *warehouse.Label, block *warehouse.LabelBlock) (err error) {
	var v eventpb.ImpressionView
	if err := v.Read(b); err != nil {
		return err
	}
	if row.Impression, err = schemas.ImpressionIDFromBytes(v.ID); err != nil {
		return err
	}
	row.User, row.Position, row.Propensity, row.Bot = v.User, warehouse.ClampPosition(uint64(v.Position)), v.Propensity, row.Bot || v.Bot
	row.ArmShare = v.ArmShare
	row.Names = [...]uint32{
		warehouse.Product:      block.Name(warehouse.Product, v.Product),
		warehouse.Creative:     block.Name(warehouse.Creative, v.Creative),
		warehouse.Placement:    block.Name(warehouse.Placement, v.Placement),
		warehouse.Campaign:     block.Name(warehouse.Campaign, v.Campaign),
		warehouse.Category:     block.Name(warehouse.Category, v.Category),
		warehouse.Experiment:   block.Name(warehouse.Experiment, v.Experiment),
		warehouse.Variant:      block.Name(warehouse.Variant, v.Variant),
		warehouse.ModelVersion: block.Name(warehouse.ModelVersion, v.ModelVersion),
		warehouse.Policy:       block.Name(warehouse.Policy, v.Policy),
	}
	return nil
}
