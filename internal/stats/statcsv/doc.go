// Package statcsv reads the tables that `ctrloop stats` works on: CSV with a header, columns in any order,
// further columns ignored. Every error names the line, the column, and what is wrong with it.
package statcsv
