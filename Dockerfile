# One image for every service; docker-compose.yml says which one a container runs. Nothing here needs BuildKit.
FROM python:3.12-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Without a pip of its own: the base's installs into it, and only the result goes on to the next stage.
RUN python -m venv --without-pip /opt/venv
COPY requirements.txt /src/
RUN python -m pip --python /opt/venv/bin/python install --requirement /src/requirements.txt
COPY pyproject.toml README.md /src/
COPY services /src/services
COPY shared /src/shared
# setuptools builds the package and is of no use after that; numpy's own tests are 17 MB.
RUN python -m pip --python /opt/venv/bin/python install --no-deps --no-build-isolation /src \
 && python -m pip --python /opt/venv/bin/python uninstall --yes setuptools \
 && find /opt/venv/lib/python3.*/site-packages/numpy -type d -name tests -prune -exec rm -rf {} +

FROM python:3.12-slim-bookworm
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1
RUN groupadd --gid 10001 orchestrator \
 && useradd --uid 10001 --gid 10001 --home-dir /app --no-log-init --shell /usr/sbin/nologin orchestrator \
 && install --directory --owner=10001 --group=10001 /app /app/data /app/data/logs
COPY --from=build /opt/venv /opt/venv
WORKDIR /app
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
# Exec form: no shell stands between a signal and the service.
ENTRYPOINT ["python", "-m"]
CMD ["services.api"]
