package webhook

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Sign gives the signature of a body at a time.
func Sign(secret, body []byte, at time.Time) string {
	t := strconv.FormatInt(at.Unix(), 10)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac(secret, t, body))
}

func mac(secret []byte, t string, body []byte) []byte {
	h := hmac.New(sha256.New, secret)
	_, _ = h.Write([]byte(t + ".")) // never fails
	_, _ = h.Write(body)
	return h.Sum(nil)
}

// Verify checks a signature header as a receiver must: in constant time, and not older or newer than the tolerance, so
// that a recorded delivery cannot be sent again later.
func Verify(secret []byte, header string, body []byte, now time.Time, tolerance time.Duration) error {
	var t string
	var sums [][]byte
	for part := range strings.SplitSeq(header, ",") {
		switch k, v, _ := strings.Cut(part, "="); k {
		case "t":
			t = v
		case "v1":
			if sum, err := hex.DecodeString(v); err == nil {
				sums = append(sums, sum)
			}
		}
	}
	sec, err := strconv.ParseInt(t, 10, 64)
	if err != nil {
		return fmt.Errorf("signature %q has no time", header)
	}
	if age := now.Sub(time.Unix(sec, 0)); age.Abs() > tolerance {
		return fmt.Errorf("signature is %v old, more than %v", age, tolerance)
	}
	want := mac(secret, t, body)
	if !slices.ContainsFunc(sums, func(sum []byte) bool { return hmac.Equal(sum, want) }) {
		return errors.New("signature does not belong to the body and the secret")
	}
	return nil
}
