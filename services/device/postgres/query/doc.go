// Package query is the SQL of the device service and the Go code that sqlc makes
// of it.
package query
