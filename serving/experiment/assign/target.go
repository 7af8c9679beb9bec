package assign

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ctrloop/schemas/control"
)

// Attributes that every decision has; others (country, device, ...) are what the caller gives.
const (
	AttrProduct   = "product"
	AttrCategory  = "category"
	AttrPlacement = "placement"
)

var attrPattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,39}$`)

// Bounds of targeting: it is asked at every decision.
const (
	maxConditions = 20
	maxValues     = 1000
)

// CheckTargeting returns every reason why the conditions cannot be used.
func CheckTargeting(conditions []control.Condition) error {
	var errs []error
	if len(conditions) > maxConditions {
		errs = append(errs, fmt.Errorf("targeting: %d conditions, at most %d", len(conditions), maxConditions))
	}
	for i, c := range conditions {
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("targeting[%d]: %s", i, fmt.Sprintf(format, args...)))
		}
		if !attrPattern.MatchString(c.Attribute) {
			bad("attribute %q: want lower-case letters, digits and underscores, at most 40", c.Attribute)
		}
		switch n := len(c.Values); c.Op {
		case control.OpIn, control.OpNotIn, control.OpPrefix:
			if n == 0 || n > maxValues || slices.Contains(c.Values, "") {
				bad("%s wants 1 to %d values, none of them empty", c.Op, maxValues)
			}
		case control.OpAtLeast, control.OpBelow:
			if n != 1 {
				bad("%s wants one number", c.Op)
			} else if x, err := strconv.ParseFloat(c.Values[0], 64); err != nil || math.IsNaN(x) {
				bad("%s wants a number, not %q", c.Op, c.Values[0])
			}
		case control.OpPresent, control.OpAbsent:
			if n != 0 {
				bad("%s takes no values", c.Op)
			}
		default:
			bad("operator %q: want in, not_in, prefix, gte, lt, present or absent", c.Op)
		}
	}
	return errors.Join(errs...)
}

// attribute of the unit; an empty one counts as absent.
func (u *Unit) attribute(name string) string {
	switch name {
	case AttrProduct:
		return u.Product
	case AttrCategory:
		return u.Category
	case AttrPlacement:
		return u.Placement
	}
	return u.Attributes[name]
}

// meets says whether the unit meets every condition. What cannot be read as a number is neither large nor small.
func meets(conditions []control.Condition, u *Unit) bool {
	for i := range conditions {
		c := &conditions[i]
		v := u.attribute(c.Attribute)
		ok := false
		switch c.Op {
		case control.OpIn:
			ok = v != "" && slices.Contains(c.Values, v)
		case control.OpNotIn:
			ok = !slices.Contains(c.Values, v)
		case control.OpPrefix:
			ok = v != "" && slices.ContainsFunc(c.Values, func(p string) bool { return strings.HasPrefix(v, p) })
		case control.OpAtLeast, control.OpBelow:
			x, err := strconv.ParseFloat(v, 64)
			limit, _ := strconv.ParseFloat(c.Values[0], 64)
			ok = err == nil && (c.Op == control.OpAtLeast && x >= limit || c.Op == control.OpBelow && x < limit)
		case control.OpPresent:
			ok = v != ""
		case control.OpAbsent:
			ok = v == ""
		}
		if !ok {
			return false
		}
	}
	return true
}
