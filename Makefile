# Every target is one command, printed before it runs; `make` alone lists them.
EPS = 2/255,4/255,8/255
SEEDS = 0,1,2
ARCHS = resnet18,resnet50,convnext_tiny,efficientnet_b0
JOBS = $(if $(GPUS),$(words $(subst $(comma), ,$(GPUS))),1)
comma = ,
MODEL = adv
PORT = 5000
WHAT = preprocess
COMMITS = 1
# Columns that `make exps` shows: the experiment, the parameters, two main metrics of each model,
# which several files have.
SECTIONS = data|model|attack|train_clean|attack_eval|train_adv|evaluate
METRICS = clean_accuracy|robust_accuracy_worst
COLUMNS = Experiment|seed|($(SECTIONS))\.|($(FILE):)?(clean|adv)\.($(METRICS))$$
FILE = metrics/headlines.json
# Long commands. An experiment that failed stays in the list until `dvc queue remove --failed`.
QUEUE = python -m tools.queue && dvc exp run --queue
START = SWEEP_GPUS=$(GPUS) dvc queue start -j $(JOBS) && echo "then: make wait, make exps"
WAIT = while dvc queue status | tee .dvc/tmp/queue | grep -Eq "Queued|Running" \
  && ! grep -q "0 active, 0 idle" .dvc/tmp/queue; do sleep 10; done; cat .dvc/tmp/queue; \
  if grep -q Failed .dvc/tmp/queue; then echo "failed: dvc queue logs <Task> says why"; exit 1; fi
FUZZ = FUZZ_IMAGES=20000 FUZZ_FILES=1000 FUZZ_REQUESTS=10000 \
  python -m pytest tests/fuzz tests/serving/test_server.py

help:    ## show this help
	@grep -E '^[a-z]+: .*##' Makefile | sed 's/: *##/\t/'
repro:   ## bring everything up to date
	dvc repro
quick:   ## the pipeline small, in the folder .quick: a minute or two (params.quick.yaml)
	python -m tools.quick
test:    ## run the fast tests (slow: python -m pytest -m slow)
	python -m pytest -m "not slow"
ui:      ## open the table of all runs in MLflow: make ui PORT=5000
	python -m tools.ui --port $(PORT)
report:  ## open the report in the browser
	test -f data/report.html && python -m webbrowser -t "file://$(CURDIR)/data/report.html"
check:   ## does this run reproduce the committed one? yes or no for each headline
	python -m tools.check
reset:   ## bring the committed parameters and their results back, after an experiment
	touch params.yaml && git checkout HEAD -- params.yaml && dvc repro
sweep:   ## one experiment per eps: make sweep EPS=2/255,4/255 JOBS=2 (or GPUS=0,1: one on each)
	$(QUEUE) -S attack.eps=$(EPS) && $(START)
seeds:   ## one experiment per seed, likewise: make seeds SEEDS=0,1,2 JOBS=2; then make spread
	$(QUEUE) -S seed=$(SEEDS) && $(START)
archs:   ## one experiment per architecture, likewise: make archs ARCHS=resnet18,resnet50; make exps
	$(QUEUE) -S model.arch=$(ARCHS) && $(START)
wait:    ## wait until all experiments of sweep, seeds and archs have run, or no worker is left
	$(WAIT)
spread:  ## mean and range of the main metrics over the seeds that were run
	dvc exp show --json -n $(COMMITS) | python -m tools.seeds
exps:    ## list experiments with changed parameters and main metrics: make exps COMMITS=5
	dvc exp show -n $(COMMITS) --only-changed --drop '(?!$(COLUMNS))'
diff:    ## the main metrics against the last commit
	dvc metrics diff --targets $(FILE)
bench:   ## make bench WHAT=attacks, convolutions, duplicates, fresh_sample, gpu, methods, preprocess, scaling, training
	python -m benchmarks.$(WHAT)
faults:  ## break the pipeline at random, damage every kind of file: hours (docs/reliability.md)
	python -m tests.faults.campaign && python -m tests.faults.environments && $(FUZZ)
tables:  ## write tables and numbers of README and docs again, and docs/predictions.zip
	python -m tools.docs && python -m tools.predictions
serve:   ## publish a model as champion and serve it on 127.0.0.1:5001: make serve MODEL=clean
	python -m stages.publish $(MODEL) && python -m stages.serve
clean:   ## remove caches; keeps results, MLflow runs and checkpoints
	rm -rf .cache .hypothesis .pytest_cache .ruff_cache .mypy_cache dvc_plots

.DEFAULT_GOAL = help
.PHONY: help repro quick test ui report check reset sweep seeds archs wait spread exps diff bench faults tables serve clean
