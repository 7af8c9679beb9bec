// Package eventpb holds the messages of the event topics, generated from event.proto (`make generate`).
package eventpb
