package eventpb

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Tags of the protobuf body of POST /v1/events. The body is the wire form of
//
//	message Events {
//	  repeated Impression impressions = 1;
//	  repeated Click clicks = 2;
//	  repeated Punctuation watermarks = 3; // source is ignored
//	}
//
// so that any protobuf library can write it, and a writer can append event after event without holding
// the message. Events are taken in the order in which they stand in the body.
const (
	BodyImpression = 1<<3 | text
	BodyClick      = 2<<3 | text
	BodyWatermark  = 3<<3 | text
)

// AppendBody appends an event, an *Impression, *Click or *Punctuation, to the protobuf body of a request
// to the edge.
func AppendBody(body []byte, event proto.Message) ([]byte, error) {
	var tag uint64
	switch event.(type) {
	case *Impression:
		tag = BodyImpression
	case *Click:
		tag = BodyClick
	case *Punctuation:
		tag = BodyWatermark
	default:
		return body, fmt.Errorf("%T is not an event of the edge: want *Impression, *Click or *Punctuation", event)
	}
	body = protowire.AppendVarint(body, tag)
	body = protowire.AppendVarint(body, uint64(proto.Size(event)))
	return proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(body, event)
}
