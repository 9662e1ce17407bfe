// Package fault is the error that domain code returns: a code from a closed
// list, a stable reason, a message safe to show, and a cause that stays inside.
// It imports no gRPC and no HTTP; grpcfault and the gateway translate it.
package fault

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// Error is a failure that a caller is told about.
type Error struct {
	// Code says what kind of failure it is and so whether repeating can help.
	Code Code
	// Reason is stable and made for programs: UPPER_SNAKE_CASE, unique within
	// the service, for example NAME_TAKEN.
	Reason string
	// Message is one sentence for people, safe to show to the caller.
	Message string
	// Fields name what is wrong with which part of the request.
	Fields []Field
	// RetryAfter, when positive, is how long to wait before trying again.
	RetryAfter time.Duration
	// Meta are further facts for programs, for example the ids in conflict.
	Meta map[string]string

	cause error
}

// Field is one violated rule.
type Field struct {
	// Path is the field as the API names it, for example "lines[2].slot".
	Path string
	// Description says what is wrong, for people.
	Description string
	// Rule is the stable name of the rule, for example "string.min_len".
	Rule string
}

// New makes an error. The format and its arguments become the message: only
// put in what the caller may see.
func New(code Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Error is the text for logs: with the cause, so never for callers.
func (e *Error) Error() string {
	if e.cause != nil {
		return fmt.Sprintf("%s (%s): %s: %v", e.Code, e.Reason, e.Message, e.cause)
	}
	return fmt.Sprintf("%s (%s): %s", e.Code, e.Reason, e.Message)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.cause }

// Is matches another *Error by its reason, so that
// errors.Is(err, account.ErrNameTaken) holds for copies with a cause or fields.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Code == e.Code && t.Reason == e.Reason
}

// Because returns a copy that keeps cause inside.
func (e *Error) Because(cause error) *Error {
	c := *e
	c.cause = cause
	return &c
}

// WithField returns a copy that names one more violated field.
func (e *Error) WithField(path, rule, description string) *Error {
	c := *e
	c.Fields = append(slices.Clip(e.Fields), Field{Path: path, Rule: rule, Description: description})
	return &c
}

// WithRetryAfter returns a copy that tells the caller when to try again.
func (e *Error) WithRetryAfter(d time.Duration) *Error {
	c := *e
	c.RetryAfter = d
	return &c
}

// From returns the *Error in err's chain.
func From(err error) (*Error, bool) {
	var e *Error
	ok := errors.As(err, &e)
	return e, ok
}
