//! The user's AWS profile: what `~/.aws/credentials` and `~/.aws/config` say where no variable does.
//!
//! Only keys, region and endpoint are read. The SDK's own reader comes with the whole SDK, and the readers of other INI
//! files know neither `[profile NAME]` nor nested settings.

use std::collections::BTreeMap;

/// The settings of one profile; empty if there is none.
#[derive(Debug)]
pub(crate) struct Profile {
    pub name: String,
    settings: BTreeMap<String, String>,
}

impl Profile {
    /// The profile that AWS_PROFILE names, or `default`.
    pub(crate) fn of_user(variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let read = |named: &str, file: &str| {
            let path = set(named).or_else(|| Some(format!("{}/.aws/{file}", set("HOME")?.trim_end_matches('/'))));
            path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default()
        };
        let name = set("AWS_PROFILE").or_else(|| set("AWS_DEFAULT_PROFILE")).unwrap_or_else(|| "default".into());
        Self::from_text(name, &read("AWS_SHARED_CREDENTIALS_FILE", "credentials"), &read("AWS_CONFIG_FILE", "config"))
    }

    fn from_text(name: String, credentials: &str, config: &str) -> Self {
        let mut settings =
            section(config, &[&format!("profile {name}"), if name == "default" { "default" } else { "" }]);
        settings.extend(section(credentials, &[&name]));
        Self { name, settings }
    }

    pub(crate) fn get(&self, setting: &str) -> Option<&str> {
        self.settings.get(setting).map(String::as_str)
    }

    /// Access key and secret, if it has both.
    pub(crate) fn keys(&self) -> Option<(&str, &str)> {
        Some((self.get("aws_access_key_id")?, self.get("aws_secret_access_key")?))
    }

    /// Why it has no keys.
    pub(crate) fn missing(&self) -> String {
        const OTHERS: [&str; 5] = ["sso_session", "sso_start_url", "role_arn", "credential_process", "login_session"];
        match OTHERS.iter().find(|other| self.get(other).is_some()) {
            Some(other) => format!("profile `{}` has no keys: it uses `{other}`", self.name),
            None => format!("~/.aws has no keys for profile `{}`", self.name),
        }
    }
}

/// The settings below any of the `headers`.
fn section(text: &str, headers: &[&str]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut is_inside = false;
    for line in text.lines() {
        let line = line.trim_end();
        if let Some(rest) = line.strip_prefix('[') {
            let header = rest.split(']').next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
            is_inside = !header.is_empty() && headers.contains(&header.as_str());
        } else if is_inside
            // Comments, and the settings that are nested below another.
            && !line.starts_with(['#', ';', ' ', '\t'])
            && let Some((name, value)) = line.split_once('=')
        {
            let value = value.trim();
            let comment = [" #", "\t#", " ;", "\t;"].iter().filter_map(|mark| value.find(mark)).min();
            let value = value[..comment.unwrap_or(value.len())].trim_end();
            if !value.is_empty() {
                found.insert(name.trim().to_lowercase(), value.to_owned());
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# mine\n[default]\naws_access_key_id = AK1\naws_secret_access_key=S/1+=\n\n\
        [lab]\naws_access_key_id=AK2 ; old\naws_secret_access_key = S2\naws_session_token = T2\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\n[profile lab]\nregion=us-east-2\n\
        endpoint_url = http://lab:9000\ns3 =\n  endpoint_url = http://nested\n[profile sso]\nsso_session = work\n\
        [lab]\nregion = not-a-profile\n";

    #[test]
    fn a_profile_is_read_from_both_files_as_the_aws_tools_do() {
        let of = |name: &str| Profile::from_text(name.into(), CREDENTIALS, CONFIG);
        let default = of("default");
        assert_eq!((default.keys(), default.get("region")), (Some(("AK1", "S/1+=")), Some("eu-west-1")));
        let lab = of("lab");
        assert_eq!(lab.keys(), Some(("AK2", "S2")));
        let rest = ["aws_session_token", "region", "endpoint_url"].map(|setting| lab.get(setting));
        assert_eq!(rest, [Some("T2"), Some("us-east-2"), Some("http://lab:9000")]);
        assert_eq!(of("sso").keys(), None);
        assert_eq!(of("sso").missing(), "profile `sso` has no keys: it uses `sso_session`");
        assert_eq!(of("nobody").missing(), "~/.aws has no keys for profile `nobody`");
    }

    #[test]
    fn variables_say_where_the_files_are() {
        let folder = std::env::temp_dir().join(format!("smelt-aws-{}", crate::unique()));
        std::fs::create_dir_all(folder.join(".aws")).unwrap();
        std::fs::write(folder.join(".aws/credentials"), CREDENTIALS).unwrap();
        std::fs::write(folder.join("elsewhere"), CONFIG).unwrap();
        let home = folder.to_str().unwrap().to_owned();
        let elsewhere = format!("{home}/elsewhere");
        let set = [("HOME", home.as_str()), ("AWS_PROFILE", "lab"), ("AWS_CONFIG_FILE", &elsewhere)];
        let profile = Profile::of_user(|name| set.iter().find(|s| s.0 == name).map(|s| s.1.to_owned()));
        assert_eq!((profile.keys(), profile.get("region")), (Some(("AK2", "S2")), Some("us-east-2")));
        assert_eq!(Profile::of_user(|_| None).keys(), None);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
