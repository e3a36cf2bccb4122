// Package workloadtest is a SPIFFE Workload API for tests: a real gRPC server on
// a Unix socket that gives what it is told to give, and fails as it is told to
// fail. Nothing that serves users may import it.
//
// It attests nobody and serves X.509-SVIDs only.
package workloadtest
