// Command wishbone-bench measures wishbone beside what people use instead, on one
// machine, in network namespaces of its own: no root is needed where user
// namespaces are allowed.
//
// All candidates are up at once. Each repetition visits every mode and, within a
// mode, every candidate, so that what else the machine does hits all alike;
// figures are compared within a repetition, and the medians of those ratios count.
// Every byte that is measured is checked.
//
// Run it with -h for its flags, and see docs/benchmarks.md.
package main
