//! The wire's hooks to the runtime's.

use super::{ConvertError, invalid};
use guest_runtime::container::{HOOK_TIMEOUT, HookSpec, Hooks};
use protocols::wire::agent;
use std::time::Duration;

pub(super) fn hooks(hooks: agent::Hooks) -> Result<Hooks, ConvertError> {
    let all = |hooks: Vec<agent::Hook>| hooks.into_iter().map(hook).collect::<Result<_, _>>();
    Ok(Hooks {
        prestart: all(hooks.Prestart)?,
        create_runtime: all(hooks.CreateRuntime)?,
        create_container: all(hooks.CreateContainer)?,
        start_container: all(hooks.StartContainer)?,
        poststart: all(hooks.Poststart)?,
        poststop: all(hooks.Poststop)?,
    })
}

fn hook(hook: agent::Hook) -> Result<HookSpec, ConvertError> {
    let timeout = match hook.Timeout {
        0 => HOOK_TIMEOUT,
        seconds => {
            let given = u64::try_from(seconds);
            let given = given.map_err(invalid("hook timeout", &seconds.to_string()))?;
            Duration::from_secs(given)
        }
    };
    let args = if hook.Args.is_empty() {
        vec![hook.Path.clone()]
    } else {
        hook.Args
    };
    Ok(HookSpec {
        path: hook.Path.into(),
        args,
        env: hook.Env,
        timeout,
    })
}
