// Package feature is an OpenFeature provider over ctrloop's experiments, for Go services beside this one. It evaluates
// locally, from the same state and with the same hash as serving does, so that a user is in the same arm everywhere.
//
// A flag is a logical model ("prompt": a string, the version that answers) or a running experiment (a string, the
// variant, or a boolean, whether it is the treatment). The targeting key is the user; the attributes product, category
// and placement and any others serve targeting. Who is in no experiment gets the default value of an experiment's flag
// and the champion of a model's.
package feature

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"ctrloop/serving/experiment/assign"
	"ctrloop/serving/experiment/exposure"

	of "github.com/open-feature/go-sdk/openfeature"
)

// Name of the provider in its metadata.
const Name = "ctrloop"

// AttrForce is the attribute that asks for an arm, for testers: "<experiment>:control" or "<experiment>:treatment".
const AttrForce = "force"

// Source has the assignment that is valid now; nil: not known yet.
type Source interface {
	Assigner() *assign.Assigner
}

// Exposer takes note of units that met an arm (exposure.Logger).
type Exposer interface {
	Expose(e exposure.Exposure)
}

// Provider is an OpenFeature provider. Safe for concurrent use.
type Provider struct {
	source Source
	expose Exposer
	now    func() time.Time
}

var _ of.FeatureProvider = (*Provider)(nil)

// NewProvider evaluates by the source; expose may be nil.
func NewProvider(source Source, expose Exposer) *Provider {
	return &Provider{source: source, expose: expose, now: time.Now}
}

// Metadata names the provider.
func (p *Provider) Metadata() of.Metadata { return of.Metadata{Name: Name} }

// Hooks are none.
func (p *Provider) Hooks() []of.Hook { return nil }

// unit reads the evaluation context. Numbers and booleans become text, other values are left out.
func unit(flat of.FlattenedContext) assign.Unit {
	u := assign.Unit{Attributes: map[string]string{}}
	for k, v := range flat {
		var text string
		switch v := v.(type) {
		case string:
			text = v
		case bool:
			text = strconv.FormatBool(v)
		case int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64:
			text = fmt.Sprint(v)
		case float64:
			text = strconv.FormatFloat(v, 'f', -1, 64)
		case float32:
			text = strconv.FormatFloat(float64(v), 'f', -1, 32)
		default:
			continue
		}
		switch k {
		case of.TargetingKey:
			u.User = text
		case assign.AttrProduct:
			u.Product = text
		case assign.AttrCategory:
			u.Category = text
		case assign.AttrPlacement:
			u.Placement = text
		case AttrForce:
			u.Force = text
		default:
			u.Attributes[k] = text
		}
	}
	return u
}

// evaluation of one flag.
type evaluation struct {
	assign.Assignment
	in     bool // the flag is a model, or the unit takes part in the flag's experiment
	model  bool
	detail of.ProviderResolutionDetail
}

func (p *Provider) evaluate(flag string, flat of.FlattenedContext) (evaluation, bool) {
	broken := func(err of.ResolutionError) (evaluation, bool) {
		return evaluation{detail: of.ProviderResolutionDetail{ResolutionError: err, Reason: of.ErrorReason}}, false
	}
	a := p.source.Assigner()
	if a == nil {
		return broken(of.NewProviderNotReadyResolutionError("the experiments are not known yet"))
	}
	logical, model := flag, true
	u := unit(flat)
	got, ok := a.Assign(logical, u)
	if !ok {
		if logical, model = a.Logical(flag), false; logical == "" {
			return broken(
				of.NewFlagNotFoundResolutionError(fmt.Sprintf("%q is neither a logical model with a champion nor a running experiment", flag)),
			)
		}
		got, _ = a.Assign(logical, u)
	}
	e := evaluation{Assignment: got, model: model, in: model || got.Experiment == flag}
	forced := got.Reason == assign.ByForce
	if !model && forced {
		e.in = got.Forced == flag
	}
	if !model && got.Reason == assign.NoUnit {
		return broken(
			of.NewTargetingKeyMissingResolutionError(
				"the experiment assigns by a key that the context lacks: the targeting key, or the attribute product",
			),
		)
	}
	meta := of.FlagMetadata{"version": got.Version, "why": string(got.Reason), "arm_share": got.ArmShare}
	if got.Experiment != "" {
		meta["experiment"], meta["step"] = got.Experiment, int64(got.Step)+1
	}
	e.detail = of.ProviderResolutionDetail{Variant: got.Variant, FlagMetadata: meta}
	switch {
	case forced && e.in:
		e.detail.Reason = of.TargetingMatchReason
	case got.Reason == assign.BySplit && e.in:
		e.detail.Reason = of.SplitReason
		p.exposed(a, got, u)
	case model:
		e.detail.Reason = of.StaticReason
	default:
		e.detail.Reason = of.DefaultReason
	}
	return e, true
}

// exposed takes note that the unit met its arm.
func (p *Provider) exposed(a *assign.Assigner, got assign.Assignment, u assign.Unit) {
	if p.expose != nil {
		p.expose.Expose(exposure.Exposure{Experiment: got.Experiment, Unit: a.Key(got.Experiment, u), Variant: got.Variant, Time: p.now()})
	}
}

func mismatch(flag, want string) of.ProviderResolutionDetail {
	return of.ProviderResolutionDetail{
		ResolutionError: of.NewTypeMismatchResolutionError(fmt.Sprintf("%q is a %s", flag, want)),
		Reason:          of.ErrorReason,
	}
}

// StringEvaluation gives a model's version or an experiment's variant.
func (p *Provider) StringEvaluation(_ context.Context, flag, def string, flat of.FlattenedContext) of.StringResolutionDetail {
	e, ok := p.evaluate(flag, flat)
	out := of.StringResolutionDetail{Value: def, ProviderResolutionDetail: e.detail}
	switch {
	case !ok || !e.in:
	case e.model:
		out.Value = e.Version
	default:
		out.Value = e.arm()
	}
	return out
}

// BooleanEvaluation says whether the unit gets an experiment's treatment.
func (p *Provider) BooleanEvaluation(_ context.Context, flag string, def bool, flat of.FlattenedContext) of.BoolResolutionDetail {
	e, ok := p.evaluate(flag, flat)
	out := of.BoolResolutionDetail{Value: def, ProviderResolutionDetail: e.detail}
	switch {
	case !ok || !e.in && !e.model:
	case e.model:
		out.ProviderResolutionDetail = mismatch(flag, "model: ask for a string")
	default:
		out.Value = e.arm() == assign.Treatment
	}
	return out
}

// arm of the flag's experiment, the forced one too.
func (e evaluation) arm() string {
	if e.Reason == assign.ByForce {
		return e.ForcedArm
	}
	return e.Variant
}

// FloatEvaluation never fits.
func (p *Provider) FloatEvaluation(_ context.Context, flag string, def float64, _ of.FlattenedContext) of.FloatResolutionDetail {
	return of.FloatResolutionDetail{Value: def, ProviderResolutionDetail: mismatch(flag, "string or a boolean")}
}

// IntEvaluation never fits.
func (p *Provider) IntEvaluation(_ context.Context, flag string, def int64, _ of.FlattenedContext) of.IntResolutionDetail {
	return of.IntResolutionDetail{Value: def, ProviderResolutionDetail: mismatch(flag, "string or a boolean")}
}

// ObjectEvaluation never fits.
func (p *Provider) ObjectEvaluation(_ context.Context, flag string, def any, _ of.FlattenedContext) of.InterfaceResolutionDetail {
	return of.InterfaceResolutionDetail{Value: def, ProviderResolutionDetail: mismatch(flag, "string or a boolean")}
}
