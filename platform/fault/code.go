package fault

import "net/http"

// Code is a kind of failure. The numbers and names are those of
// google.rpc.Code, so that a code is the same on every wire.
type Code uint32

// The kinds of failure. See the table below for what each becomes.
const (
	OK                 Code = 0
	Canceled           Code = 1
	Unknown            Code = 2
	InvalidArgument    Code = 3
	DeadlineExceeded   Code = 4
	NotFound           Code = 5
	AlreadyExists      Code = 6
	PermissionDenied   Code = 7
	ResourceExhausted  Code = 8
	FailedPrecondition Code = 9
	Aborted            Code = 10
	OutOfRange         Code = 11
	Unimplemented      Code = 12
	Internal           Code = 13
	Unavailable        Code = 14
	DataLoss           Code = 15
	Unauthenticated    Code = 16
)

// row is what one code is called and becomes.
type row struct {
	name       string
	httpStatus int
	title      string
}

// table is the one place that says what a code is called on the wire, which
// HTTP status it becomes, and its title in problem details. docs/errors.md is
// generated from it; a test loops over all codes. HTTP statuses follow
// google/rpc/code.proto, except FailedPrecondition, which is a conflict with the
// state of the resource (409) and not a malformed request.
var table = [...]row{
	OK:                 {"OK", http.StatusOK, "OK"},
	Canceled:           {"CANCELLED", 499, "The caller went away"},
	Unknown:            {"UNKNOWN", http.StatusInternalServerError, "Unknown error"},
	InvalidArgument:    {"INVALID_ARGUMENT", http.StatusBadRequest, "The request is not valid"},
	DeadlineExceeded:   {"DEADLINE_EXCEEDED", http.StatusGatewayTimeout, "It took too long"},
	NotFound:           {"NOT_FOUND", http.StatusNotFound, "Not found"},
	AlreadyExists:      {"ALREADY_EXISTS", http.StatusConflict, "It exists already"},
	PermissionDenied:   {"PERMISSION_DENIED", http.StatusForbidden, "Not permitted"},
	ResourceExhausted:  {"RESOURCE_EXHAUSTED", http.StatusTooManyRequests, "Too much at once"},
	FailedPrecondition: {"FAILED_PRECONDITION", http.StatusConflict, "Not possible in this state"},
	Aborted:            {"ABORTED", http.StatusConflict, "It conflicts with another request"},
	OutOfRange:         {"OUT_OF_RANGE", http.StatusBadRequest, "Out of range"},
	Unimplemented:      {"UNIMPLEMENTED", http.StatusNotImplemented, "Not implemented"},
	Internal:           {"INTERNAL", http.StatusInternalServerError, "Internal error"},
	Unavailable:        {"UNAVAILABLE", http.StatusServiceUnavailable, "Unavailable"},
	DataLoss:           {"DATA_LOSS", http.StatusInternalServerError, "Data was lost"},
	Unauthenticated:    {"UNAUTHENTICATED", http.StatusUnauthorized, "Not authenticated"},
}

func (c Code) row() row {
	if int(c) < len(table) {
		return table[c]
	}
	return table[Unknown]
}

// String is the code's name in google.rpc.Code.
func (c Code) String() string { return c.row().name }

// HTTPStatus is the status of the HTTP response that carries the code.
func (c Code) HTTPStatus() int { return c.row().httpStatus }

// Title is the code's title in problem details (RFC 9457).
func (c Code) Title() string { return c.row().title }

// Codes are all codes, in order.
func Codes() []Code {
	all := make([]Code, len(table))
	for i := range table {
		all[i] = Code(i)
	}
	return all
}
