package gateway

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	"ctrloop/serving/backend"
)

// identity is what the start of an answer says of it.
type identity struct {
	model  string
	failed bool // a stream whose first event is an error
}

// identify reads a whole answer, or a stream up to its first event with data, into head.
func (u *upstream) identify() (identity, error) {
	if u.resp.StatusCode == http.StatusOK && strings.HasPrefix(u.resp.Header.Get("Content-Type"), "text/event-stream") {
		br := bufio.NewReaderSize(u.resp.Body, 16<<10)
		head, data, err := firstEvent(br)
		u.head = head
		u.resp.Body = struct {
			io.Reader
			io.Closer
		}{br, u.resp.Body}
		if err != nil {
			return identity{}, err
		}
		return identityOf(data)
	}
	var err error
	if u.head, err = io.ReadAll(io.LimitReader(u.resp.Body, backend.MaxAnswerBytes+1)); err != nil {
		return identity{}, err
	}
	if len(u.head) > backend.MaxAnswerBytes {
		return identity{}, errors.New("the answer is larger than 8 MiB")
	}
	if u.resp.StatusCode != http.StatusOK {
		return identity{}, nil
	}
	return identityOf(u.head)
}

func identityOf(raw []byte) (identity, error) {
	var a struct {
		Model string          `json:"model"`
		Error json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(raw, &a); err != nil {
		return identity{}, err
	}
	return identity{model: a.Model, failed: len(a.Error) > 0 && string(a.Error) != "null"}, nil
}

// maxHead bounds what is read of a stream before its first event.
const maxHead = 1 << 20

// firstEvent reads up to the end of the first event that has data. What comes before it (comments, which servers send
// to keep a connection open, and events without data) is part of head and goes to the client, too.
func firstEvent(br *bufio.Reader) (head, data []byte, err error) {
	for len(head) < maxHead {
		line, err := br.ReadSlice('\n')
		head = append(head, line...)
		if errors.Is(err, bufio.ErrBufferFull) {
			line, err = br.ReadBytes('\n')
			head = append(head, line...)
			line = head[bytes.LastIndexByte(head[:len(head)-1], '\n')+1:]
		}
		if err != nil {
			return head, nil, err
		}
		field, isData := bytes.CutPrefix(line, []byte("data:"))
		switch {
		case isData:
			data = append(data, bytes.TrimSpace(field)...)
		case len(bytes.TrimSpace(line)) == 0 && len(data) > 0:
			return head, data, nil
		}
	}
	return head, nil, errors.New("the stream's first event is larger than 1 MiB")
}
