package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// CallTimeout of one request to a cluster.
const CallTimeout = 30 * time.Second

// maxAnswer bounds what is read of an answer, in bytes.
const maxAnswer = 8 << 20

// Call sends a request with a JSON body (nil: none) and reads the answer. An error means that there was none.
func Call(ctx context.Context, c *http.Client, method, url string, header http.Header, body any) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, CallTimeout)
	defer cancel()
	var in io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return 0, nil, fmt.Errorf("encode request: %w", err)
		}
		in = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, in)
	if err != nil {
		return 0, nil, fmt.Errorf("request: %w", err)
	}
	if header != nil {
		req.Header = header
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	return resp.StatusCode, answer, nil
}

// Token reads a token file. It is read for every request: tokens run out and are made anew. No file is no token.
func Token(file string) (string, error) {
	if file == "" {
		return "", nil
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("token: %w", err)
	}
	token := strings.TrimSpace(string(raw))
	if token == "" {
		return "", fmt.Errorf("token: %s is empty", file)
	}
	return token, nil
}

// Words are the first line or so of an answer, for an error.
func Words(answer []byte) string {
	const most = 300
	text := strings.Join(strings.Fields(string(answer)), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return text
}

// CheckURL says what is wrong with the address of a server.
func CheckURL(address string) error {
	u, err := http.NewRequest(http.MethodGet, address, nil)
	if err != nil || u.URL.Host == "" || u.URL.Scheme != "http" && u.URL.Scheme != "https" {
		return fmt.Errorf("%q: want http://host:port or https://host:port", address)
	}
	return nil
}
